"""Puts the files of a directory out of the page cache, so that the next to read them reads the disk."""

import os
import sys

for directory, _, names in os.walk(sys.argv[1]):
    for name in names:
        file = os.open(os.path.join(directory, name), os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
