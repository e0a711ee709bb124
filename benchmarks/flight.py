"""Arrow Flight at its plainest, in a process of its own: do_get of record batches that were made beforehand.

python -m benchmarks.flight serve SOCKET BYTES
python -m benchmarks.flight read ADDRESS BYTES
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from benchmarks.peers import CHUNK
from benchmarks.processes import answer

__all__ = ["main"]


def main() -> None:
    """Serves, or reads whenever it is told to, until standard input ends."""
    role, where, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if role == "serve":
        _serve(f"grpc+unix://{where}", size)
    else:
        _read(where, size)


def _serve(address: str, size: int) -> None:
    import numpy
    import pyarrow
    from pyarrow import flight

    rows = (min(CHUNK, size - start) for start in range(0, size, CHUNK))
    batches = [
        pyarrow.record_batch([pyarrow.array(numpy.full(count, index % 251, "uint8"))], ["bytes"])
        for index, count in enumerate(rows)
    ]

    class Server(flight.FlightServerBase):
        """Gives the batches, whatever the ticket."""

        def do_get(self, context: Any, ticket: Any) -> Any:
            """The batches as they are: Arrow sends them without a copy of its own."""
            reader = pyarrow.RecordBatchReader.from_batches(batches[0].schema, batches)
            return flight.RecordBatchStream(reader)

    server = Server(address)
    thread = threading.Thread(target=server.serve)
    thread.start()
    answer({"address": address}, {})
    server.shutdown()
    thread.join()


def _read(address: str, size: int) -> None:
    from pyarrow import flight

    with flight.connect(address) as client:

        def read() -> float:
            began = time.perf_counter()
            table = client.do_get(flight.Ticket(b"")).read_all()
            taken = time.perf_counter() - began
            assert table.nbytes == size
            return taken

        answer({}, {"read": read})


if __name__ == "__main__":
    main()
