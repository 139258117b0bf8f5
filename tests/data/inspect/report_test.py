"""What `data show` measures and its page: the numbers, the marks, and that the page needs nothing else."""

import html.parser
import re

import numpy as np
import pytest
from PIL import Image

from seed_jax.data.batches.mixture_config import make_mixture
from seed_jax.data.batches.packing import pack
from seed_jax.data.batches.record_stream import MixtureComponent, evenly_spaced
from seed_jax.data.inspect import charts
from seed_jax.data.inspect import html as page
from seed_jax.data.inspect.report import MixtureReport
from seed_jax.data.inspect.statistics import measure
from seed_jax.data.shards.records import Record
from seed_jax.data.shards.shards import open_shards
from seed_jax.data.templates import make_template
from seed_jax.data.text.vocabulary import Vocabulary
from tests.data.batches import mixtures
from tests.data.sources.samples import png
from tests.support import golden


@pytest.fixture(scope="module")
def vocab():
    return Vocabulary.load(golden.path("text_tokenizer/tokenizer"))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory, vocab):
    root = tmp_path_factory.mktemp("mixture")
    codes = np.arange(32, dtype=np.uint16)
    pairs = [Record(f"p{n}", "folder", (codes + n, f"a dog <script>alert({n})</script>"), {"n": n}) for n in range(40)]
    texts = [Record(f"t{n}", "text", ("the river " * (20 + n) if n % 4 else "?",)) for n in range(20)]
    mixtures.write(root / "pairs", pairs)
    mixtures.write(root / "texts", texts, items={"texts": 20}, dropped={"empty text": 3}, filters={"min_size": 180})
    entries = [
        {"path": str(root / "pairs"), "task": "image_text_pair", "weight": 3, "params": {"max_length": 100}},
        {"path": str(root / "texts"), "task": "pretrain.text", "weight": 1, "params": {"max_length": 200}, "cycles": 1},
    ]
    return MixtureReport(make_mixture(entries, vocab), vocab, length=256, num_records=30)


class Checked(html.parser.HTMLParser):
    """Notes every tag and attribute, and that what is opened is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.tags = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in ("meta", "img", "hr", "line", "rect", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("meta", "img", "hr", "line", "rect", "polyline"):
            assert self.open.pop() == tag


def test_a_page_is_well_formed_safe_and_self_contained(mixture):
    content = mixture.html(
        "a <title>", [(0, 3), (1, 5), (1, 0)], lambda codes: [Image.new("RGB", (64, 64))] * len(codes)
    )
    checked = Checked(content)
    assert "script" not in checked.tags
    assert "&lt;script&gt;alert(3)" in content
    assert "a &lt;title&gt;" in content
    links = [value for name, value in checked.attributes if name in ("src", "href")]
    assert len(links) == 1  # the one image drawn from codes
    assert links[0].startswith("data:image/jpeg;base64,")
    assert "http" not in re.sub(r"data:image[^\"]*", "", content)
    for words in (
        "60 records, 2 components",
        "3 (3 empty text)",
        "min_size=180",
        "texts, record 5",
        "Packing",
        "cycles",
    ):
        assert words in content
    assert "dropped: the text is empty or only punctuation" in content


def test_shards_without_a_vocabulary_show_records_only(tmp_path):
    records = [Record(str(n), "folder", (png(n), f"Image {n}."), {"w": 6}) for n in range(5)]
    directory = mixtures.write(tmp_path / "d", records, items={"images": 5})
    report = MixtureReport([MixtureComponent(directory)])
    assert report.lines() == []
    content = report.html("d", [(0, 1)])
    Checked(content)
    assert "Image 1." in content
    assert "6 x 5, " in content
    assert "Packing" not in content
    assert content.count("<svg") == 2  # characters, images


def test_component_stats_match_the_samples(mixture, vocab):
    part, shards = mixture.components[1], mixture.shards[1]
    found = measure(part, shards, 30, vocab.num_codes)
    assert (found.num_records, found.num_measured) == (20, 20)
    assert found.dropped == {"the text is empty or only punctuation": 5}
    lengths = [min(len(vocab.encode("the river " * (20 + n), bos=True)) + 1, 200) for n in range(20) if n % 4]
    assert found.lengths.tolist() == lengths
    assert found.padded_utilization == pytest.approx(np.mean(lengths) / 200)
    assert found.tokens_per_record == pytest.approx(sum(lengths) / 20)
    pairs = measure(mixture.components[0], mixture.shards[0], 1000, vocab.num_codes)
    assert pairs.codes.num_images == 40
    assert pairs.codes.counts.sum() == 40 * 32
    assert (pairs.images_per_record == 1).all()


def test_packing_is_compared_with_padding(mixture):
    pairs, texts = mixture.stats
    # Of three pairs and one text drawn, a quarter of the texts are drawn again, which the original does not pad.
    useful = 3 * pairs.lengths.mean() + 0.75 * texts.lengths.mean()
    assert mixture.utilization.padded == pytest.approx(useful / (3 * 100 + 0.75 * 200))
    assert 0.9 < mixture.utilization.packed <= 1
    assert mixture.utilization.padded < mixture.utilization.packed
    assert any(line.startswith("token utilization: 9") for line in mixture.lines())


def test_tokens_are_marked_where_they_are_trained(vocab):
    qa = make_template("sft.qa", {}, vocab)
    sample = qa({"image_ids": np.arange(32), "question": "what?", "answer": "a dog"}, np.random.default_rng(0))
    content = page.tokens_html(sample, vocab)
    Checked(content)
    chips = re.findall(r'<span class="([^"]*)" title="(\d+): ([\d ]+)">([^<]*)', content)
    ids = [int(token) for _, _, tokens, _ in chips for token in tokens.split()]
    assert ids == sample.tokens.tolist()
    marked = [int(place) for kind, place, *_ in chips if "on" in kind.split()]
    assert marked == [place for place in np.flatnonzero(sample.loss_mask).tolist() if place < len(sample)]
    assert [kind for kind, *_ in chips].count("image") == 1
    batch = pack([sample, sample], 200)
    strip = page.packed_rows(batch, vocab)
    Checked(strip)
    assert [strip.count(f'<b class="{kind}"') for kind in ("image", "image on", "trained")] == [2, 0, 2]
    pair = make_template("image_text_pair", {}, vocab)(
        {"image_ids": np.arange(32), "text": "a dog"}, np.random.default_rng(0)
    )
    assert page.packed_rows(pack([pair], 200), vocab).count('<b class="image on"') == 1
    assert strip.count("segment 1:") == strip.count("segment 2:") == 1
    assert re.findall(r'<i style="width:([\d.]+)%', strip) == [f"{100 * len(sample) / 200:.3f}"] * 2


def test_consecutive_texts_are_grouped_and_bytes_are_legible(vocab):
    record = Record("1", "t", (mixtures.codes(1), "first", "second", mixtures.codes(2), "third"))
    card = page.sample_card(record, "part, record 1", [], None, [])
    Checked(card)
    assert '<div class="texts"><p>first</p><p>second</p></div><figure' in card
    assert [page.visible_piece(piece) for piece in ("<0x55>", "<0xE7>", "<0x0A>", "\u2581a")] == [
        "U",
        "E7",
        "\u21b5",
        "\u00b7a",
    ]


def test_charts_have_captions():
    values = np.array([1, 1, 2, 40, 100])
    content = charts.histogram(values, "lengths", {"max_length": 120})
    Checked(content)
    bars = [int(count) for count in re.findall(r"below [\d,]+: ([\d,]+)<", content)]
    assert sum(bars) == 5
    assert "median 2, mean 28.8, 5 values" in content
    assert charts.histogram(np.array([3, 3, 3]), "frames").count("<rect") == 1
    assert "no lengths" in charts.histogram(np.array([]), "lengths")
    assert "no codes" in charts.ranked(np.zeros(4, int), "codes")
    Checked(charts.ranked(np.array([0, 5, 1, 700]), "codes"))


def test_evenly_spaced_numbers():
    assert evenly_spaced(10, 3) == [0, 4, 9]
    assert evenly_spaced(3, 10) == [0, 1, 2]


def test_a_report_on_several_directories(tmp_path, vocab):
    for name in ("a", "b"):
        mixtures.write(tmp_path / name, [Record(name, "folder", (mixtures.codes(0) % 128, "x y"))])
    entries = [{"path": [str(tmp_path / "a"), str(tmp_path / "b")], "task": "image_text_pair", "weight": 1}]
    report = MixtureReport(make_mixture(entries, vocab), vocab, length=128)
    assert report.names == ["a, b"]
    assert [directory for directory, _ in report.manifests] == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert open_shards(tmp_path / "a").manifest.records == 1
