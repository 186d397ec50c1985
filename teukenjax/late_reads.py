"""An event loop in which one failed read ends quietly with all the others.

Orbax reads a checkpoint's arrays together on an asyncio loop of its own. When one fails, it closes
the loop at once; the rest, still on their way in TensorStore's threads, then come back to a closed
loop, and each prints a traceback over the one line that a user should see. Here the rest are
cancelled before the loop closes, and what comes in later is dropped.
"""

import asyncio
import contextlib
from collections.abc import Iterator


class _Loop(asyncio.SelectorEventLoop):
    def close(self) -> None:
        if not self.is_closed() and (tasks := asyncio.all_tasks(self)):
            self.run_until_complete(_end(tasks))
        super().close()

    def call_soon_threadsafe(self, callback, *args, context=None):
        try:
            return super().call_soon_threadsafe(callback, *args, context=context)
        except RuntimeError:
            if not self.is_closed():
                raise
            return None


async def _end(tasks: set[asyncio.Task]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _Policy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _Loop()


@contextlib.contextmanager
def dropped() -> Iterator[None]:
    """New asyncio loops are of this kind while the block runs."""
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(_Policy())
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(before)
