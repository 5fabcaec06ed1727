"""File suffixes of photos, videos and archives."""

from __future__ import annotations

#: A file with one of these suffixes is treated as a photo, regardless of its content.
PHOTO_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"}
    | {".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif"}
    # Unsupported formats: their files get rows with an error.
    | {".ppm", ".pgm", ".pbm", ".pnm", ".pam", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".jxl", ".jls"}
    | {".tga", ".psd", ".qoi", ".jxr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"}
)

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm", ".mpg", ".mpeg", ".3gp", ".3g2", ".flv", ".wmv", ".asf"}
    | {".ogv", ".ts", ".mts", ".m2ts", ".vob"}
)

#: Suffixes of compressed archives, which are not supported.
ARCHIVE_SUFFIXES = (
    *(".zip", ".7z", ".rar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz"),
    *(".tar.zst", ".tzst"),
)
