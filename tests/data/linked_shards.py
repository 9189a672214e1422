"""Many shards of many samples, of which the disk holds few: the others are further names of theirs."""

import os
import tarfile


def write_linked_shards(folder, shards, samples, distinct=1, size=100):
    """Return the paths of shards with one member of `size` bytes, up to 512, a sample."""
    folder.mkdir(exist_ok=True)
    for number in range(distinct):
        with open(folder / f"{number:05d}.tar", "wb") as file:
            for i in range(samples):
                info = tarfile.TarInfo(f"{number:05d}/{i:06d}.txt")
                info.size = size
                file.write(info.tobuf(tarfile.USTAR_FORMAT) + f"{number}/{i}".encode().ljust(512, b"."))
            file.write(bytes(1024))
    for number in range(distinct, shards):
        os.link(folder / f"{number % distinct:05d}.tar", folder / f"{number:05d}.tar")
    return [str(folder / f"{number:05d}.tar") for number in range(shards)]
