"""Asks whether the encoder can learn to read words, prices and bars, before hours are spent on it.

    python services/agent-decoder/training/probe.py --minutes 6

Trains the encoder afresh on crops of drawn items through throw-away linear heads on the four tokens
of a crop, and measures with fonts, words and noise that training never saw.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from cogitate.evals import bars, cards, nouns, sheets
from cogitate.evals.items import Style
from cogitate.evals.render import Pixels
from cogitate.evals.sources import held_out_source
from mini.augment import normalise
from mini.fonts import training_source
from mini.model import CROP_TOKENS, Encoder, ModelConfig
from mini.views import crop_view
from PIL import Image
from torch import Tensor, nn

# Characters by place, blank at the end; a longer text is not drawn.
LETTERS = " abcdefghijklmnopqrstuvwxyz0123456789.:/^-&"
PLACES = 11
LEVELS = 101
MADE_UP_SHARE = 0.5
Sample = tuple[Pixels, str, float]


def _made_up(rng: np.random.Generator) -> str:
    """A word nobody knows, so that letters are read and not words guessed."""
    pairs = zip(
        rng.choice(list("bcdfghklmnprstvwz"), 5), rng.choice(list("aeiouy"), 5), strict=True
    )
    word = "".join(a + b for a, b in pairs)
    return word[: int(rng.integers(3, 10))]


def draw(rng: np.random.Generator, style: Style) -> Iterator[Sample]:
    """Yields crops with what they say, or how far a bar goes; -1 and "" where there is none."""
    pick = rng.random()
    if pick < 0.35:
        words = nouns.WORDS
        if not style.held_out and rng.random() < MADE_UP_SHARE:
            words = tuple(dict.fromkeys(_made_up(rng) for _ in range(40)))
        labels = cards.draw_labels(rng, words, held_out=style.held_out)
        picture, boxes = cards.render_labels(rng, labels, style).photo(rng, style.noise)
        said = [(boxes["card", i], word, -1.0) for i, word in enumerate(labels.words)]
    elif pick < 0.75:
        kind = sheets.KINDS[rng.integers(3)]
        sheet = sheets.draw_sheet(rng, kind, held_out=style.held_out)
        picture, boxes = sheets.render_sheet(rng, sheet, style).photo(rng, style.noise)
        said = [
            (boxes["cell", i, j], cell.lower(), -1.0)
            for i, row in enumerate(sheet.rows)
            for j, cell in enumerate(row)
        ]
    else:
        chart = bars.draw_chart(rng, held_out=style.held_out)
        picture, boxes = bars.render_chart(rng, chart, style).photo(rng, style.noise)
        said = [(boxes["bar", i], "", v / chart.top) for i, v in enumerate(chart.values)]
    image = Image.fromarray(picture)
    for box, text, level in said:
        if len(text) <= PLACES:
            yield crop_view(image, box), text, level


def batch_of(rng: np.random.Generator, style: Callable[[], Style], count: int) -> list[Sample]:
    """Draws at least `count` samples, whole pictures at a time, and cuts what is too many."""
    samples: list[Sample] = []
    while len(samples) < count:
        samples += draw(rng, style())
    return samples[:count]


class Reader(nn.Module):
    """The encoder, and heads that are thrown away: a character a place, and a bar's level."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config).to(memory_format=torch.channels_last)
        size = CROP_TOKENS * config.hidden_size
        self.text = nn.Linear(size, PLACES * len(LETTERS))
        self.level = nn.Linear(size, LEVELS)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, 64, 64) to (B, places, letters) and (B, levels)."""
        crop = self.encoder.project_crop(self.encoder.body(x)).flatten(1)
        return self.text(crop).float().view(-1, PLACES, len(LETTERS)), self.level(crop).float()


def labels_of(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Returns characters (B, places) and levels (B,), -100 where there is none."""
    texts = torch.full((len(samples), PLACES), -100)
    levels = torch.full((len(samples),), -100)
    for i, (_, text, level) in enumerate(samples):
        if level >= 0:
            levels[i] = round(level * (LEVELS - 1))
        else:
            texts[i] = torch.tensor([LETTERS.index(c) for c in text.ljust(PLACES)])
    return texts, levels


@torch.no_grad()
def measure(model: Reader, samples: Sequence[Sample]) -> dict[str, float]:
    """Returns the rates of texts read exactly, and of bars within 5 % of their value."""
    model.eval()
    x = normalise(np.stack([one[0] for one in samples]))
    with torch.autocast("cpu", torch.bfloat16):
        text, level = model(x)
    model.train()
    texts, _ = labels_of(samples)
    exact = (text.argmax(-1) == texts).all(1).numpy()
    is_bar = np.array([one[2] >= 0 for one in samples])
    is_word = np.array([one[1][:1].isalpha() for one in samples])
    truth = np.array([one[2] for one in samples])
    read = level.softmax(-1).mul(torch.arange(LEVELS)).sum(-1).numpy() / (LEVELS - 1)
    near = np.abs(read - truth) <= 0.05 * truth
    return {
        "words": round(float(exact[is_word].mean()), 3),
        "numbers": round(float(exact[~is_word & ~is_bar].mean()), 3),
        "bars": round(float(near[is_bar].mean()), 3),
        "n": len(samples),
    }


def main(arguments: Sequence[str]) -> None:
    """Draws, trains, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--samples", type=int, default=24_000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rng, began = np.random.default_rng(0), time.monotonic()
    source = training_source()
    known = batch_of(rng, lambda: Style(float(rng.uniform(0, 2)), source, False), options.samples)
    kept = Style(0.5, held_out_source(), held_out=True)
    unseen = batch_of(np.random.default_rng(1), lambda: kept, 1500)
    print(f"drawn in {time.monotonic() - began:.0f} s", flush=True)
    views = np.stack([one[0] for one in known])
    texts, levels = labels_of(known)
    model = Reader(ModelConfig())
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3, betas=(0.9, 0.98), weight_decay=0.05)
    ends, told = began + options.minutes * 60, time.monotonic()
    first = time.monotonic()
    step = 0
    while (now := time.monotonic()) < ends:
        share = (now - first) / (ends - first)
        optimiser.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 60) * (1.02 - share)
        chosen = torch.from_numpy(rng.integers(0, len(known), 192))
        x = normalise(views[chosen.numpy()])
        x = x + torch.randn_like(x) * 0.1 * torch.rand(len(x), 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            text, level = model(x)
        loss = F.cross_entropy(text.flatten(0, 1), texts[chosen].flatten(), ignore_index=-100)
        loss = loss + 0.3 * F.cross_entropy(level, levels[chosen], ignore_index=-100)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        if now - told > 45:
            print(step, f"{now - began:.0f} s", round(loss.item(), 3), measure(model, unseen),
                  flush=True)  # fmt: skip
            told = time.monotonic()
    print("end", step, measure(model, unseen), "seen:", measure(model, known[:1500]))


if __name__ == "__main__":
    main(sys.argv[1:])
