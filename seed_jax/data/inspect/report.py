"""Inspect shards or a mixture: composition, packing efficiency, and rendered samples, as text and as an HTML page."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from seed_jax.data.batches.packed import PackedBatches
from seed_jax.data.batches.record_stream import MixtureComponent, RecordStream, open_mixture, render_record
from seed_jax.data.inspect import charts, html, statistics
from seed_jax.data.inspect.code_usage import CodeStats
from seed_jax.data.inspect.html import Decoder
from seed_jax.data.inspect.statistics import ComponentStats, MixtureShare, TokenUtilization
from seed_jax.data.inspect.summary import manifest_facts
from seed_jax.data.shards.manifest import Manifest
from seed_jax.data.shards.shards import JoinedShards, Shards
from seed_jax.data.templates.renderer import Renderer
from seed_jax.data.text.vocabulary import Vocabulary

NUM_RECORDS = 2000  # measured per component
NUM_CODES = 8192  # of SEED's tokenizers
_NUM_ROWS = 6  # packed rows shown


@dataclasses.dataclass(frozen=True)
class MixtureReport:
    """A mixture to inspect.

    Attributes:
        components: the mixture; with a vocabulary, all components have templates.
        vocab: vocabulary of the templates, or None to inspect records only.
        length: tokens of a packed row.
        num_records: records to measure per component.
    """

    components: Sequence[MixtureComponent]
    vocab: Vocabulary | None = None
    length: int = 2048
    num_records: int = NUM_RECORDS

    @functools.cached_property
    def shards(self) -> list[Shards | JoinedShards]:
        return open_mixture([component.directory for component in self.components])

    @functools.cached_property
    def names(self) -> list[str]:
        """The directory names of each component."""
        return [_name(component.directory) for component in self.components]

    @functools.cached_property
    def stats(self) -> list[ComponentStats]:
        num_codes = self.vocab.num_codes if self.vocab else NUM_CODES
        return [
            statistics.measure(component, shards, self.num_records, num_codes)
            for component, shards in zip(self.components, self.shards, strict=True)
        ]

    @functools.cached_property
    def utilization(self) -> TokenUtilization:
        return statistics.token_utilization(self.components, self.stats, self.length)

    @property
    def directories(self) -> list[Shards]:
        """The shard directories of all components."""
        return [
            directory
            for shards in self.shards
            for directory in (shards.directories if isinstance(shards, JoinedShards) else [shards])
        ]

    @property
    def manifests(self) -> list[tuple[str, Manifest]]:
        return [(str(shards.directory), shards.manifest) for shards in self.directories]

    def lines(self) -> list[str]:
        """Return the measurements as lines for the terminal; none without templates."""
        if self.vocab is None:
            return []
        rows = [f"{row.name}: {'; '.join(row.facts())}" for row in self._rows()]
        packed = f"token utilization: {self.utilization.packed:.1%} packed into rows of {self.length}"
        return [*rows, f"{packed}, {self.utilization.padded:.1%} with samples padded to {self._padding()}"]

    def html(self, title: str, numbers: Sequence[tuple[int, int]], decoder: Decoder | None = None) -> str:
        """Return a self-contained HTML page.

        Args:
            title: title of the page.
            numbers: (component, record) of the samples to show.
            decoder: renders codes as images; without it only the codes are shown.
        """
        measured = sum(stats.num_measured for stats in self.stats)
        total = sum(stats.num_records for stats in self.stats)
        components = f", {len(self.components)} components" if len(self.components) > 1 else ""
        lead = f"{total:,} records{components}. Lengths, shares and code usage are measured on {measured:,} of them."
        codes = self.stats[0].codes
        for stats in self.stats[1:]:
            codes = CodeStats(codes.counts + stats.codes.counts, codes.num_images + stats.codes.num_images)
        sections = [
            ("Directories", self._directories_section()),
            ("Mixture", self._mixture_section()),
            ("Packing", self._packing_section()),
            ("Lengths", self._lengths_section()),
            ("Codes", _codes_section(codes)),
            ("Samples", self._samples_section(numbers, decoder)),
        ]
        return html.page(title, lead, sections)

    def _padding(self) -> str:
        limited = any(stats.max_length for stats in self.stats)
        return "max_length, as in the original" if limited else "a row, since the template has no max_length"

    def _rows(self) -> list["_ComponentRow"]:
        shares = statistics.mixture_shares(self.components, self.stats)
        columns = zip(self.names, self.components, self.stats, shares, strict=True)
        return [_ComponentRow(*row) for row in columns]

    def _directories_section(self) -> str:
        rows = []
        for directory, manifest in self.manifests:
            facts = "; ".join(f"{name}: {value}" for name, value in manifest_facts(manifest).items())
            rows.append((directory, f"{manifest.records:,}", manifest.source, facts))
        return html.table(("directory", "records", "source", "manifest"), rows)

    def _mixture_section(self) -> str:
        if self.vocab is None:
            return ""
        names = (
            "component",
            "task",
            "records",
            "of samples",
            "tokens per record",
            "of tokens",
            "trained",
            "utilization if padded",
            "cycles",
            "dropped by the template",
        )
        rows = self._rows()
        table = html.table(names, [row.cells() for row in rows])
        if len(self.components) == 1:
            return table
        samples = charts.bars([(row.name, row.share.samples) for row in rows], "Share of the samples.")
        tokens = charts.bars([(row.name, row.share.tokens) for row in rows], "Share of the tokens.")
        return f'{table}<div class="grid wide">{samples}{tokens}</div>'

    def _packing_section(self) -> str:
        if self.vocab is None:
            return ""
        stream = RecordStream(statistics.without_end(self.components), 0)
        batch = next(iter(PackedBatches(stream, batch_size=_NUM_ROWS, sequence_length=self.length)))
        caption = (
            f"Fraction of positions that hold a token: packed into rows of {self.length}, and with every sample padded "
            f"to {self._padding()}."
        )
        bars = charts.bars([("packed", self.utilization.packed), ("padded", self.utilization.padded)], caption)
        return f"{bars}<h3>{_NUM_ROWS} rows</h3>{html.LEGEND}{html.packed_rows(batch, self.vocab)}"

    def _lengths_section(self) -> str:
        figures = []
        for name, stats in zip(self.names, self.stats, strict=True):
            if self.vocab:
                marks = {"max_length": stats.max_length} if stats.max_length else {}
                figures.append(charts.histogram(stats.lengths, f"{name}, tokens per sample", marks))
            else:
                figures.append(charts.histogram(stats.text_lengths, f"{name}, characters per text"))
                figures.append(charts.histogram(stats.images_per_record, f"{name}, images per record"))
        return f'<div class="grid">{"".join(figures)}</div>'

    def _samples_section(self, numbers: Sequence[tuple[int, int]], decoder: Decoder | None) -> str:
        cards = []
        for component, number in numbers:
            record = self.shards[component][number]
            codes = [item for item in record.items if isinstance(item, np.ndarray)]
            decoded = list(decoder(np.stack(codes))) if decoder and codes else []
            samples = render_record(self.components[component], record, number)
            name = f"{self.names[component]}, record {number}"
            cards.append(html.sample_card(record, name, samples, self.vocab, decoded))
        return (html.LEGEND if self.vocab else "") + "".join(cards)


@dataclasses.dataclass(frozen=True)
class _ComponentRow:
    """A component with everything that is shown about it."""

    name: str
    component: MixtureComponent
    stats: ComponentStats
    share: MixtureShare

    @property
    def task(self) -> str:
        render = self.component.render
        return render.template.name if isinstance(render, Renderer) else "-"

    def facts(self) -> list[str]:
        """Return phrases for the terminal."""
        stats = self.stats
        padded = f", {stats.padded_utilization:.0%} utilization if padded" if stats.max_length else ""
        return [
            f"{stats.num_records:,} records for {self.task}",
            f"{self.share.samples:.1%} of the samples, {self.share.tokens:.1%} of the tokens",
            f"{stats.tokens_per_record:.1f} tokens per record{padded}",
            *(f"{count} dropped: {reason}" for reason, count in stats.dropped.items()),
        ]

    def cells(self) -> tuple[str | int, ...]:
        """Return the cells of the table row."""
        stats = self.stats
        return (
            self.name,
            self.task,
            f"{stats.num_records:,}",
            f"{self.share.samples:.1%}",
            f"{stats.tokens_per_record:.1f}",
            f"{self.share.tokens:.1%}",
            f"{stats.trained.sum() / max(stats.lengths.sum(), 1):.0%}",
            f"{stats.padded_utilization:.0%}" if stats.max_length else "-",
            self.component.cycles or "no end",
            ", ".join(f"{count} {reason}" for reason, count in stats.dropped.items()),
        )


def _name(directory: str | Path | Sequence[str | Path]) -> str:
    directories = [directory] if isinstance(directory, str | Path) else directory
    return ", ".join(str(path).rstrip("/").rpartition("/")[2] for path in directories)


def _codes_section(stats: CodeStats) -> str:
    if not stats.num_images:
        return ""
    used = f"{stats.used:,} of {len(stats.counts):,} codes are used in {stats.num_images:,} images"
    caption = f"{used}, perplexity {stats.perplexity:,.0f}; usage of each code in descending order"
    return f'<div class="grid">{charts.ranked(stats.counts, caption)}</div>'
