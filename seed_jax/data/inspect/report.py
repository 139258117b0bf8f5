"""Look into shards or a mixture: what is in each part, how full packed rows are, and samples as people see them."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from seed_jax.data.batches.packed import PackedBatches
from seed_jax.data.batches.record_stream import Part, RecordStream, open_all
from seed_jax.data.inspect import charts, statistics
from seed_jax.data.inspect import html as page
from seed_jax.data.inspect.code_usage import CodeStats
from seed_jax.data.inspect.html import Decoder
from seed_jax.data.inspect.statistics import Measured
from seed_jax.data.inspect.summary import facts
from seed_jax.data.shards.manifest import Manifest
from seed_jax.data.shards.shards import JoinedShards, Shards
from seed_jax.data.text.vocabulary import Vocabulary

RECORDS = 2000  # of each part that are measured
NUM_CODES = 8192  # of SEED's tokenizers
_ROWS = 6  # packed rows that are drawn


@dataclasses.dataclass(frozen=True)
class Look:
    """A mixture to be looked at: with a vocabulary, all its parts have templates.

    Attributes:
        length: tokens of a packed row.
        records: how many records of each part are measured.
    """

    parts: Sequence[Part]
    vocab: Vocabulary | None = None
    length: int = 2048
    records: int = RECORDS

    @functools.cached_property
    def shards(self) -> list[Shards | JoinedShards]:
        return open_all([part.directory for part in self.parts])

    @functools.cached_property
    def names(self) -> list[str]:
        several = [
            [part.directory] if not isinstance(part.directory, list | tuple) else part.directory for part in self.parts
        ]
        return [", ".join(str(each).rstrip("/").rpartition("/")[2] for each in directories) for directories in several]

    @functools.cached_property
    def measured(self) -> list[Measured]:
        codes = self.vocab.num_codes if self.vocab else NUM_CODES
        pairs = zip(self.parts, self.shards, strict=True)
        return [statistics.measure(part, shards, self.records, codes) for part, shards in pairs]

    @functools.cached_property
    def useful(self) -> statistics.Useful:
        return statistics.useful_shares(self.parts, self.measured, self.length)

    @property
    def manifests(self) -> list[tuple[str, Manifest]]:
        several = [each.several if isinstance(each, JoinedShards) else [each] for each in self.shards]
        return [(str(shards.directory), shards.manifest) for each in several for shards in each]

    def lines(self) -> list[str]:
        """Return what was measured, for the terminal; nothing without templates."""
        if self.vocab is None:
            return []
        rows = [f"{name}: {'; '.join(_described(*each))}" for name, *each in self._table()]
        packed = f"useful positions: {self.useful.packed:.1%} packed into rows of {self.length}"
        return [*rows, f"{packed}, {self.useful.padded:.1%} when every sample is padded to {self._padding()}"]

    def _padding(self) -> str:
        limited = any(each.max_length for each in self.measured)
        return "max_length, as the original does" if limited else "a row, since its template has no max_length"

    def _table(self) -> list[tuple[str, Part, Measured, tuple[float, float]]]:
        return list(
            zip(self.names, self.parts, self.measured, statistics.shares(self.parts, self.measured), strict=True)
        )

    def html(self, title: str, numbers: Sequence[tuple[int, int]], decoder: Decoder | None = None) -> str:
        """Return a page; `numbers` are the (part, record) to show as samples."""
        measured = sum(each.records for each in self.measured)
        total = sum(each.total for each in self.measured)
        several = f", {len(self.parts)} parts" if len(self.parts) > 1 else ""
        lead = f"{total:,} records{several}. Lengths, shares and codes are measured on {measured:,} of them."
        codes = self.measured[0].codes
        for each in self.measured[1:]:
            codes = CodeStats(codes.counts + each.codes.counts, codes.pictures + each.codes.pictures)
        sections = [
            ("Directories", self._directories()),
            ("Parts", self._parts() if self.vocab else ""),
            ("Packing", self._packing() if self.vocab else ""),
            ("Lengths", self._lengths()),
            ("Codes", _codes(codes)),
            ("Samples", self._samples(numbers, decoder)),
        ]
        return page.page(title, lead, sections)

    def _directories(self) -> str:
        rows = []
        for directory, manifest in self.manifests:
            about = "; ".join(f"{name}: {value}" for name, value in facts(manifest).items())
            rows.append((directory, f"{manifest.records:,}", manifest.source, about))
        return page.table(("directory", "records", "source", "what it says of itself"), rows)

    def _parts(self) -> str:
        rows = [
            (
                name,
                part.render.task.name,
                f"{each.total:,}",
                f"{samples:.1%}",
                f"{each.mean_length:.1f}",
                f"{tokens:.1%}",
                f"{each.trained.sum() / max(each.lengths.sum(), 1):.0%}",
                f"{each.padded_share:.0%}" if each.max_length else "-",
                part.cycles or "no end",
                ", ".join(f"{count} {reason}" for reason, count in each.dropped.items()),
            )
            for name, part, each, (samples, tokens) in self._table()
        ]
        names = ("part", "task", "records", "of samples", "tokens each", "of tokens", "trained", "useful if padded")
        shown = page.table((*names, "cycles", "left out by the template"), rows)
        if len(self.parts) == 1:
            return shown
        shares = [(name, *both) for name, _, _, both in self._table()]
        samples = charts.bars([(name, share) for name, share, _ in shares], "Share of the samples that are drawn.")
        tokens = charts.bars([(name, share) for name, _, share in shares], "Share of their tokens.")
        return f'{shown}<div class="grid wide">{samples}{tokens}</div>'

    def _packing(self) -> str:
        useful = [("packed", self.useful.packed), ("padded", self.useful.padded)]
        batch = next(
            iter(PackedBatches(RecordStream(statistics.endless(self.parts), 0), rows=_ROWS, length=self.length))
        )
        caption = (
            f"Positions that hold a token: rows of {self.length} packed, and every sample padded to {self._padding()}."
        )
        rows = f"<h3>{_ROWS} rows</h3>{page.LEGEND}{page.packed_rows(batch, self.vocab)}"
        return charts.bars(useful, caption) + rows

    def _lengths(self) -> str:
        found = []
        for name, each in zip(self.names, self.measured, strict=True):
            if self.vocab:
                marks = {"max_length": each.max_length} if each.max_length else {}
                found.append(charts.histogram(each.lengths, f"{name}, tokens of a sample", marks))
            else:
                found.append(charts.histogram(each.texts, f"{name}, characters of a text"))
                found.append(charts.histogram(each.pictures, f"{name}, pictures of a record"))
        return f'<div class="grid">{"".join(found)}</div>'

    def _samples(self, numbers: Sequence[tuple[int, int]], decoder: Decoder | None) -> str:
        cards = []
        for part, number in numbers:
            record = self.shards[part][number]
            codes = [item for item in record.items if isinstance(item, np.ndarray)]
            decoded = list(decoder(np.stack(codes))) if decoder and codes else []
            samples = statistics.rendered(self.parts[part], record, number)
            name = f"{self.names[part]}, record {number}"
            cards.append(page.sample_card(record, name, samples, self.vocab, decoded))
        return (page.LEGEND if self.vocab else "") + "".join(cards)


def _described(part: Part, measured: Measured, shares: tuple[float, float]) -> list[str]:
    padded = f", {measured.padded_share:.0%} useful if padded" if measured.max_length else ""
    lines = [
        f"{measured.total:,} records for {part.render.task.name}",
        f"{shares[0]:.1%} of the samples, {shares[1]:.1%} of the tokens",
        f"{measured.mean_length:.1f} tokens each{padded}",
    ]
    return [*lines, *(f"{count} left out: {reason}" for reason, count in measured.dropped.items())]


def _codes(stats: CodeStats) -> str:
    if not stats.pictures:
        return ""
    used = f"{stats.used:,} of {len(stats.counts):,} codes are used in {stats.pictures:,} pictures"
    caption = f"{used}, perplexity {stats.perplexity:,.0f}; uses of each, the most used first"
    return f'<div class="grid">{charts.ranked(stats.counts, caption)}</div>'
