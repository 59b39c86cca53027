"""Images at http and https addresses, which a stranger may have chosen: within limits of bytes and of time."""

from ..catalogue.addresses import ADDRESS_ERRORS, Clock, open_address, reason_in_words, shown_address

MAX_BYTES = 1 << 28
MAX_SECONDS = 60.0  # for all of it

_BLOCK_BYTES = 1 << 20


def download_image(url: str) -> bytes:
    """Return the file at an address. Raises OSError with the address, where it can be shown."""
    clock = Clock(MAX_SECONDS)
    data = bytearray()
    try:
        with open_address(url, clock) as answer:
            promised = answer.length  # None: the file ends with the connection
            while block := answer.read(_BLOCK_BYTES):
                data += block
                if max(len(data), promised or 0) > MAX_BYTES:
                    raise OSError(f"it has more than {MAX_BYTES:,} bytes")
        if promised is not None and len(data) < promised:
            raise OSError(f"the connection broke after {len(data):,} of {promised:,} bytes")
    except ADDRESS_ERRORS as error:
        reason = reason_in_words(error, MAX_SECONDS)
        # Its own message may hold a password, or what the server wrote.
        raise OSError(f"Expected an image at {shown_address(url)}, which could not be downloaded: {reason}") from None
    return bytes(data)
