"""`python -m training preference --a FOLDER --b FOLDER`: serve a preference study to raters in browsers.

A page of plain HTML, the standard library's server, answers in one file. Raters never learn which system is which:
clips have the addresses of their place, not their names.
"""

import json
import mimetypes
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from threading import Lock

import tyro

from infra.cli import ExitCode
from training.evaluation.preference import Answer, AnswerFile, Choice, find_pairs, order_for, report, study_id

PAGE = "preference.html"
MAX_BODY = 1000


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Ask people which of two systems' clips they prefer.

    Attributes:
        a, b: folders with the clips of the two systems; the two clips of a pair have the same file name.
        answers: file of answers; a study goes on from it.
        question: asked of each pair.
        raters: how many; each opens its own link.
        pairs: drawn at random; default all.
        seed: of pairs, order and sides.
        host, port: where the page is served.
        report: print what the answers say, and leave.
    """

    a: Path
    b: Path
    answers: Path = Path("out/preference.jsonl")
    question: str = "Which of the two videos looks more realistic?"
    raters: int = 4
    pairs: int | None = None
    seed: int = 0
    host: str = "127.0.0.1"
    port: int = 8100
    report: bool = False


class Study:
    """A study as the server holds it.

    Raises:
        ValueError: if the folders hold no pairs, or the file other answers.
    """

    def __init__(self, arguments: Arguments) -> None:
        pairs = find_pairs(arguments.a, arguments.b, count=arguments.pairs, seed=arguments.seed)
        self.question, self.names = arguments.question, (arguments.a.name, arguments.b.name)
        self.orders = {rater: order_for(pairs, rater, arguments.seed) for rater in range(1, arguments.raters + 1)}
        self.file = AnswerFile(arguments.answers, study_id(pairs, arguments.seed))
        self._lock = Lock()

    def state(self, rater: int) -> dict[str, object]:
        """What the page shows a rater next; `place` is None at the end.

        Raises:
            KeyError: if there is no such rater.
        """
        order = self.orders[rater]
        answered = [(rater, seen.pair.name) in self.file.answers for seen in order]
        place = answered.index(False) if False in answered else None
        kind = "" if place is None else _kind(order[place].pair.a)
        return {
            "question": self.question,
            "total": len(order),
            "done": sum(answered),
            "place": place,
            "is_video": kind.startswith("video/"),
        }

    def clip(self, rater: int, place: int, side: str) -> Path:
        """File of a clip.

        Raises:
            KeyError, IndexError: if there is none.
        """
        seen = self.orders[rater][place]
        return seen.pair.a if (side == "left") != seen.swapped else seen.pair.b

    def answer(self, rater: int, place: int, side: str) -> None:
        """Record what a rater chose: left, right or equal.

        Raises:
            KeyError, IndexError: if there is no such rater, place or side.
        """
        seen = self.orders[rater][place]
        sides: dict[str, Choice] = {"left": "B" if seen.swapped else "A", "right": "A" if seen.swapped else "B"}
        choice = {**sides, "equal": "equal"}[side]
        with self._lock:
            self.file.add(Answer(rater=rater, pair=seen.pair.name, choice=choice))


class Handler(BaseHTTPRequestHandler):
    """Routes: / and /rater/N the page, /rater/N/next, /rater/N/clip/PLACE/SIDE, POST /rater/N/answer, /report."""

    def __init__(self, study: Study, *args: object) -> None:
        self.study = study
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Serve page, state, clips and report."""
        path = self.path.split("?")[0]
        try:
            if path == "/":
                links = "".join(f'<li><a href="/rater/{rater}">rater {rater}</a></li>' for rater in self.study.orders)
                self._send(f"<!doctype html><title>Preference study</title><ul>{links}</ul>".encode(), "text/html")
            elif path == "/report":
                text = report(list(self.study.file.answers.values()), self.study.names)
                self._send(text.encode(), "text/plain; charset=utf-8")
            elif found := re.fullmatch(r"/rater/(\d+)", path):
                self.study.state(int(found[1]))
                self._send((files("training.evaluation") / PAGE).read_bytes(), "text/html; charset=utf-8")
            elif found := re.fullmatch(r"/rater/(\d+)/next", path):
                self._send(json.dumps(self.study.state(int(found[1]))).encode(), "application/json")
            elif found := re.fullmatch(r"/rater/(\d+)/clip/(\d+)/(left|right)", path):
                clip = self.study.clip(int(found[1]), int(found[2]), found[3])
                self._send(clip.read_bytes(), _kind(clip))
            else:
                self.send_error(HTTPStatus.NOT_FOUND)
        except (KeyError, IndexError):
            self.send_error(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        """Take an answer: {"place": 3, "side": "left"}."""
        found = re.fullmatch(r"/rater/(\d+)/answer", self.path)
        size = int(self.headers.get("Content-Length") or 0)
        if found is None or size > MAX_BODY:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            given = json.loads(self.rfile.read(size))
            self.study.answer(int(found[1]), int(given["place"]), given["side"])
        except (KeyError, IndexError, TypeError, ValueError):
            self.send_error(HTTPStatus.BAD_REQUEST, "an answer is a place and a side: left, right or equal")
            return
        self._send(json.dumps(self.study.state(int(found[1]))).encode(), "application/json")

    def log_message(self, *_: object) -> None:
        """Stay silent."""

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)


def make_server(arguments: Arguments) -> ThreadingHTTPServer:
    """Bind the study's server; port 0 takes a free one."""
    return ThreadingHTTPServer((arguments.host, arguments.port), partial(Handler, Study(arguments)))


def main(arguments: Sequence[str]) -> ExitCode:
    """Parse a command line; serve, or report."""
    parsed = tyro.cli(Arguments, args=list(arguments), prog="python -m training preference")
    if parsed.report:
        study = Study(parsed)
        print(report(list(study.file.answers.values()), study.names))
        return ExitCode.DONE
    server = make_server(parsed)
    where = f"http://{parsed.host}:{server.server_port}"
    print(
        f"raters open {where}/rater/1 to {where}/rater/{parsed.raters}; {where}/report says how it stands", flush=True
    )
    with suppress(KeyboardInterrupt):
        server.serve_forever()
    return ExitCode.DONE


def _kind(path: Path) -> str:
    return mimetypes.guess_type(path.name)[0] or "application/octet-stream"
