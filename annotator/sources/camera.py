"""The camera of an entry's photo: given, else from EXIF, else assumed."""

from __future__ import annotations

from annotator.lens import Lens
from annotator.photos.camera import PhotoCamera, exif_camera
from annotator.photos.decode import Photo
from annotator.sources.entry import Camera, Entry


def camera_of(entry: Entry, photo: Photo) -> PhotoCamera:
    """Return the camera of an entry's photo."""
    if entry.focal_px is not None:
        return PhotoCamera(entry.focal_px, None, "given")
    if entry.camera is None:
        return exif_camera(photo)
    return given_camera(entry.camera, photo, (1.0, 1.0) if entry.boxes_in == "photo" else photo.stretch_xy)


def given_camera(camera: Camera, photo: Photo, stretch_xy: tuple[float, float]) -> PhotoCamera:
    """Return the camera of a photo whose width and height are `stretch_xy` times those that `camera` is given for."""
    across, down = stretch_xy
    lens = Lens(
        camera.fx * across,
        (camera.fx if camera.fy is None else camera.fy) * down,
        photo.width / 2 if camera.cx is None else camera.cx * across,
        photo.height / 2 if camera.cy is None else camera.cy * down,
        camera.model,
        tuple(camera.distortion),
    )
    return PhotoCamera((lens.fx + lens.fy) / 2, (lens.cx, lens.cy), "given", None if lens.is_plain else lens)
