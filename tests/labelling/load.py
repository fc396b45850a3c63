"""Load test of the labelling server: so many labelers at once, each page and each save timed.

    python tests/labelling/load.py --labelers 50 --seconds 60

Every labeler signs in, then takes comparisons of four outputs: reads each output's page, answers in several autosaves,
turns the page, ranks all four, hands in. Between two requests they think, `--think` seconds on average; people think
longer. An owner opens the dashboard every five seconds. Times are from the first byte sent to the last byte received.
"""

import argparse
import asyncio
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from urllib.parse import urlencode

from instructlit.labelling import people, tasks
from instructlit.labelling.database import Database
from instructlit.labelling.questions import QUESTIONS
from instructlit.tools.label.security import csrf_token

OUTPUTS = 4
TEXT = "The **harbour** was rebuilt after the storm of 1893.\n\n1. First the walls\n2. Then the `lighthouse`\n\n" * 8
Times = dict[str, list[float]]


class Caller:
    """One browser: a connection that stays open, cookies, and the CSRF token."""

    def __init__(self, port: int, times: Times):
        self.port, self.times, self.cookies, self.failed = port, times, {}, 0

    async def open(self, token: str) -> "Caller":
        """Sign in."""
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        await self.call("sign in", "GET", "/sign-in")
        await self.call("sign in", "POST", "/sign-in", token=token)
        return self

    async def call(self, what: str, method: str, path: str, **fields: object) -> tuple[int, str, str]:
        """Status, where it leads, and the body."""
        body = b""
        if method == "POST":
            secret = self.cookies.get("session") or self.cookies["visitor"]
            body = urlencode({"csrf": csrf_token(secret)} | fields).encode()
        cookies = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncookie: {cookies}\r\ncontent-length: {len(body)}\r\n"
        kind = "content-type: application/x-www-form-urlencoded\r\n" if body else ""
        start = time.perf_counter()
        self.writer.write(f"{head}{kind}\r\n".encode() + body)
        answer = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        length = re.search(r"content-length: (\d+)", answer)
        content = await self.reader.readexactly(int(length[1])) if length else b""
        self.times[what].append(time.perf_counter() - start)
        for name, value in re.findall(r"set-cookie: ([\w-]+)=([^;]*)", answer):
            self.cookies[name] = value
        status = int(answer.split(" ", 2)[1])
        self.failed += status >= 400
        to = re.search(r"location: (\S+)", answer)
        return status, to[1] if to else "", content.decode()


async def labeler(port: int, token: str, end: float, think: float, arrive: float, times: Times) -> int:
    """Come, and work until the time is over; the number of requests that failed."""
    rng = random.Random(token)
    await asyncio.sleep(rng.uniform(0, arrive))
    caller = await Caller(port, times).open(token)

    async def pause() -> None:
        await asyncio.sleep(rng.uniform(0, 2 * think))

    while time.monotonic() < end:
        _, work, _ = await caller.call("next task", "POST", "/next", kind="comparison")
        if not work.startswith("/work/"):
            break
        version = 0
        for output in range(1, OUTPUTS + 1):
            await caller.call("page of an output", "GET", f"{work}/{output}")
            fields: dict[str, object] = {"output": output, "rating": rng.randint(1, 7)}
            for questions in (QUESTIONS[:4], QUESTIONS[4:8], QUESTIONS[8:]):
                await pause()
                fields |= {f"flag_{question.name}": "no" for question in questions}
                await caller.call("autosave", "POST", f"{work}/draft", version=version, seconds=think, **fields)
                version += 1
            go = "rank" if output == OUTPUTS else output + 1
            await caller.call("turn the page", "POST", f"{work}/page", version=version, go=go, **fields)
        await caller.call("board", "GET", f"{work}/rank")
        ranks = {}
        for output in range(OUTPUTS):
            await pause()
            ranks[f"rank_{output}"] = rng.randint(1, OUTPUTS)
            await caller.call("autosave", "POST", f"{work}/draft", version=version, **ranks)
            version += 1
        await caller.call("hand in", "POST", f"{work}/page", version=version, go="submit", **ranks)
        await caller.call("home", "GET", "/")
    caller.writer.close()
    return caller.failed


async def owner(port: int, token: str, end: float, times: Times) -> int:
    """Open the dashboard now and then."""
    caller = await Caller(port, times).open(token)
    while time.monotonic() < end:
        await asyncio.sleep(5)
        await caller.call("dashboard", "GET", "/owner")
    return caller.failed


async def everybody(port: int, tokens: list[str], owners: str, options: argparse.Namespace) -> tuple[Times, int]:
    """All of them."""
    times: Times = defaultdict(list)
    end = time.monotonic() + options.seconds
    work = [labeler(port, token, end, options.think, options.arrive, times) for token in tokens]
    failed = await asyncio.gather(*work, owner(port, owners, end, times))
    return times, sum(failed)


def quantile(values: list[float], share: float) -> float:
    """The smallest value that `share` of the values do not exceed, in milliseconds."""
    return 1000 * sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labelers", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--think", type=float, default=1.0)
    parser.add_argument("--arrive", type=float, default=5.0, help="seconds in which they sign in")
    parser.add_argument("--tasks", type=int, default=5000)
    parser.add_argument("--database", help="an empty database; a new file when not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        name = options.database or str(Path(folder) / "labels.db")
        database = Database(name)
        record = {"kind": "comparison", "completions": [f"{TEXT} {i}" for i in range(OUTPUTS)]}
        with database.write() as session:
            tasks.add_tasks(
                session, "load", [record | {"prompt": f"What happened? {i}"} for i in range(options.tasks)], overlap=2
            )
            names = [f"labeler {i}" for i in range(options.labelers)]
            tokens = [people.add_person(session, "load", each, "labeler") for each in names]
            owners = people.add_person(session, "load", "olga", "owner")
        database.close()
        command = [sys.executable, "-m", "instructlit", "label", "--database", name, "--port", "0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            port = re.search(r":(\d+)  \(", server.stdout.readline())
            assert port is not None
            times, failed = asyncio.run(everybody(int(port[1]), tokens, owners, options))
        finally:
            server.terminate()
            server.wait()
    everything = [value for values in times.values() for value in values]
    print(f"{'':<20}{'requests':>9}{'median':>9}{'95 %':>9}{'99 %':>9}{'longest':>9}  ms")
    for what, values in [*sorted(times.items()), ("all", everything)]:
        figures = "".join(f"{quantile(values, share):>9.0f}" for share in (0.5, 0.95, 0.99, 1.0))
        print(f"{what:<20}{len(values):>9}{figures}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    rate, share = len(everything) / options.seconds, (used.ru_utime + used.ru_stime) / options.seconds
    print(f"{options.labelers} labelers, {rate:.0f} requests a second, {failed} failed, server {share:.0%} of a core")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
