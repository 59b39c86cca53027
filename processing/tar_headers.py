"""Headers of tars that are refused where reading them takes as much memory as a stranger likes."""

import tarfile

_MAX_HEADER = 1 << 20  # bytes of the extended header of a file, which holds a long name
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class BoundedHeader(tarfile.TarInfo):
    """A header that `tarfile` reads as its own, by `tarinfo`; it raises ReadError for one that is too long."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _EXTENDED and self.size > _MAX_HEADER:
            raise tarfile.ReadError(f"a header has {self.size:,} bytes, expected at most {_MAX_HEADER:,}")
        if sum(map(len, tar.pax_headers.values())) > _MAX_HEADER:  # those for all files, which add up
            raise tarfile.ReadError(f"its headers have more than {_MAX_HEADER:,} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]
