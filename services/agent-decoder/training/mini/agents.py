"""Runs many agents in lockstep, one token each per position, and does their tool calls."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from cogitate.evals.render import Pixels
from PIL import Image
from torch import Tensor

from mini import tokenizer as names
from mini.llama import Llama
from mini.tokenizer import load_tokenizer
from mini.tools import WRONG_CALL, parse_zoom, run_text_tool
from mini.views import MEAN, STD, crop_view, whole_view

MAX_POSITIONS = 320
ENCODER_BATCH = 256


@dataclass(frozen=True)
class Task:
    """What one agent is given."""

    question: str
    image_png: bytes | None
    hint: str = ""
    instant: bool = False


@dataclass
class Session:
    """One agent on its way: what it still has to read, and what it has said."""

    image: Image.Image | None
    queue: deque[int | Tensor]
    ids: list[int] = field(default_factory=list)
    own_count: int = 0
    call_start: int | None = None
    answer_start: int | None = None
    is_done: bool = False


class Agents:
    """The shipped model with its tools."""

    def __init__(self, directory: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        self.llama = Llama(directory, dtype)
        self.tokenizer = load_tokenizer(directory / "tokenizer.json")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.vision = onnxruntime.InferenceSession(
            str(directory / "vision.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.special = {n: self.tokenizer.token_to_id(n) for n in names.SPECIAL_TOKENS}

    def encode_views(self, views: Sequence[Pixels], output: str) -> list[Tensor]:
        """Returns the `whole` (16, D) or `crop` (4, D) embeddings of each view."""
        embeddings: list[Tensor] = []
        for start in range(0, len(views), ENCODER_BATCH):
            pixels = np.stack(views[start : start + ENCODER_BATCH]).astype(np.float32) / 255
            values = np.ascontiguousarray(((pixels - MEAN) / STD).transpose(0, 3, 1, 2))
            (result,) = self.vision.run([output], {"pixel_values": values.astype(np.float32)})
            embeddings.extend(torch.from_numpy(result))
        return embeddings

    def text_ids(self, text: str) -> list[int]:
        """Returns the tokens of plain text."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _session(self, task: Task, whole: Tensor | None, image: Image.Image | None) -> Session:
        s = self.special
        queue: deque[int | Tensor] = deque([s[names.BEGIN], s[names.USER]])
        queue.extend(self.text_ids(task.question))
        if whole is not None:
            queue.extend(whole)
        queue.extend([s[names.END], s[names.ASSISTANT], *self.text_ids(task.hint)])
        session = Session(image, queue)
        if task.instant:
            queue.append(s[names.ANSWER])
            session.answer_start = 0
        return session

    def _sessions(self, tasks: Sequence[Task]) -> list[Session]:
        """Opens and encodes each distinct picture once."""
        pictures = list(dict.fromkeys(t.image_png for t in tasks if t.image_png is not None))
        images = {png: Image.open(BytesIO(png)).convert("RGB") for png in pictures}
        encoded = self.encode_views([whole_view(images[png]) for png in pictures], "whole")
        wholes = dict(zip(pictures, encoded, strict=True))
        return [
            self._session(task, wholes.get(task.image_png), images.get(task.image_png))
            if task.image_png is not None
            else self._session(task, None, None)
            for task in tasks
        ]

    def _accept(self, session: Session, token: int) -> Pixels | None:
        """Takes a sampled token; returns the view a zoom asks for."""
        s = self.special
        session.ids.append(token)
        session.own_count += 1
        session.queue.append(token)
        if token == s[names.END]:
            session.is_done = True
        elif token == s[names.CALL]:
            session.call_start = len(session.ids)
        elif token == s[names.ANSWER]:
            session.answer_start = len(session.ids)
        elif token == s[names.RUN]:
            call = self.tokenizer.decode(session.ids[session.call_start : -1])
            box = parse_zoom(call) if session.call_start is not None else None
            if box is not None and session.image is not None:
                return crop_view(session.image, box)
            result = run_text_tool(call) if session.call_start is not None else WRONG_CALL
            queue = [s[names.RESULT], *self.text_ids(result), s[names.END_RESULT]]
            session.queue.extend(queue)
        return None

    def run(self, tasks: Sequence[Task], *, temperature: float, seed: int) -> list[Session]:
        """Runs one agent per task to its end; greedy at temperature 0. Same seed, same agents."""
        sessions = self._sessions(tasks)
        generator = torch.Generator().manual_seed(seed)
        self.llama.start(len(sessions), MAX_POSITIONS)
        for position in range(MAX_POSITIONS):
            active = [i for i, session in enumerate(sessions) if not session.is_done]
            if not active:
                break
            logits = self._feed(sessions, active, position)
            if temperature > 0:
                chances = torch.softmax(logits / temperature, -1)
                chosen = torch.multinomial(chances, 1, generator=generator)[:, 0].tolist()
            else:
                chosen = logits.argmax(-1).tolist()
            zooming, views = [], []
            for i, token in zip(active, chosen, strict=True):
                if sessions[i].queue:
                    continue
                view = self._accept(sessions[i], token)
                if view is not None:
                    zooming.append(sessions[i])
                    views.append(view)
            for session, crop in zip(zooming, self.encode_views(views, "crop"), strict=True):
                s = self.special
                session.queue.extend([s[names.RESULT], *crop, s[names.END_RESULT]])
        return sessions

    def _feed(self, sessions: list[Session], active: list[int], position: int) -> Tensor:
        """Feeds the next token or embedding of each active session; returns logits."""
        items = [sessions[i].queue.popleft() for i in active]
        ids = torch.tensor([item if isinstance(item, int) else 0 for item in items])
        x = self.llama.embedding[ids].float()
        for row, item in enumerate(items):
            if not isinstance(item, int):
                x[row] = item
        everyone = len(active) == len(sessions)
        rows = slice(None) if everyone else torch.tensor(active)
        return self.llama.step(x, rows, position)

    def answer(self, session: Session) -> str:
        """Returns the sentence after `<|answer|>`, empty if there is none."""
        if session.answer_start is None or not session.is_done:
            return ""
        return str(self.tokenizer.decode(session.ids[session.answer_start : -1]))
