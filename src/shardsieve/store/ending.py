"""The end of a program that used Zarr."""

import atexit

from zarr.core import sync

_PATIENCE = 10.0


@atexit.register
def _end_zarr() -> None:
    """End Zarr's event loop once its thread has left it.

    Zarr itself, whose turn comes after this, waits for a fifth of a second. A program that is done
    on a machine at work would end with a traceback.
    """
    loop, thread = sync.loop[0], sync.iothread[0]
    if loop is not None and thread is not None:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_PATIENCE)
        # A loop that is stopped and not forgotten would be waited for without end.
        sync.cleanup_resources()
