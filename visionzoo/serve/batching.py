"""Requests that come at the same time go through a model together; more than wait in line are sent away."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from visionzoo.serve.bounds import Refused


class _Asked(NamedTuple):
    item: Any
    answer: asyncio.Future[Any]  #: of the loop that asks, and touched there alone


class Batcher:
    """One thread that answers, in batches of whatever waits when it is free.

    Nothing waits for a batch to fill: alone, a request is answered at once; while the model works, others gather.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[list[Any]], Sequence[Any]],
        *,
        batch: int,
        waiting: int,
        seconds: float,
        saw_batch: Callable[[str, int], None] = lambda _name, _size: None,
    ) -> None:
        """
        Args:
            name: in messages and metrics.
            run: items -> as many answers, in their order. It is called in one thread.
            batch: items at a time, at most.
            waiting: items that may wait.
            seconds: that one may take, the wait included.
            saw_batch: told the name and the size of every batch.
        """
        self.name, self.seconds = name, seconds
        self._run, self._batch, self._saw_batch = run, batch, saw_batch
        self._queue: queue.Queue[_Asked | None] = queue.Queue(waiting)
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"visionzoo-{name}", daemon=True)
        self._thread.start()

    async def ask(self, item: Any) -> Any:
        """The answer to one item.

        Raises:
            Refused: 429 where too many wait, 503 where the answer takes too long or the server stops; and whatever
                ``run`` raises for this item.
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._closed:
            raise Refused(503, "the server is stopping")
        try:
            self._queue.put_nowait(_Asked(item, answer))
        except queue.Full:
            raise Refused(
                429, f"{self._queue.maxsize} requests wait for {self.name} already; try again in a moment"
            ) from None
        try:
            async with asyncio.timeout(self.seconds):
                return await answer
        except TimeoutError:
            raise Refused(503, f"{self.name} did not answer within {self.seconds:g} seconds") from None

    @property
    def depth(self) -> int:
        """Items that wait."""
        return self._queue.qsize()

    def close(self) -> None:
        """Answer nobody any more; what is being computed is let go on to its end."""
        self._closed = True
        while True:
            try:
                left = self._queue.get_nowait()
            except queue.Empty:
                break
            if left is not None:
                _give([(left, Refused(503, "the server is stopping"))])
        self._queue.put(None)
        self._thread.join(self.seconds)

    def _work(self) -> None:
        while (first := self._queue.get()) is not None:
            asked, stop = [first], False
            while len(asked) < self._batch and not stop:
                try:
                    following = self._queue.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    stop = True
                else:
                    asked.append(following)
            asked = [one for one in asked if not one.answer.done()]  # who has gone, or waited too long, needs no answer
            if asked:
                self._saw_batch(self.name, len(asked))
                _give(self._answered(asked))
            if stop:
                return

    def _answered(self, asked: list[_Asked]) -> list[tuple[_Asked, Any]]:
        """Each with its answer, or the exception that it is."""
        try:
            return list(zip(asked, self._run([one.item for one in asked]), strict=True))
        except Exception as error:  # whatever it is, it belongs to those who asked, and the thread goes on
            if len(asked) == 1:
                return [(asked[0], error)]
            return [found for one in asked for found in self._answered([one])]  # one is to blame; no other shall pay


def _give(answers: list[tuple[_Asked, Any]]) -> None:
    """Hand answers to the loop that waits, all at once: waking it for each would cost more than a small model."""

    def tell() -> None:
        for one, answer in answers:
            if one.answer.done():  # has gone
                continue
            if isinstance(answer, Exception):
                one.answer.set_exception(answer)
            else:
                one.answer.set_result(answer)

    loop = answers[0][0].answer.get_loop()
    with suppress(RuntimeError):  # it is closed: nobody waits
        loop.call_soon_threadsafe(tell)
