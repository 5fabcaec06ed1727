"""What files are by their names."""

from __future__ import annotations

#: A file with one of these endings is taken for a photo, whatever is inside.
PHOTO_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"}
    | {".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif"}
    # Formats that are not read, so that their rows say so.
    | {".ppm", ".pgm", ".pbm", ".pnm", ".pam", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".jxl", ".jls"}
    | {".tga", ".psd", ".qoi", ".jxr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"}
)

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm", ".mpg", ".mpeg", ".3gp", ".3g2", ".flv", ".wmv", ".asf"}
    | {".ogv", ".ts", ".mts", ".m2ts", ".vob"}
)

#: Names of packed archives, which are not read.
ARCHIVE_SUFFIXES = (
    *(".zip", ".7z", ".rar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz"),
    *(".tar.zst", ".tzst"),
)
