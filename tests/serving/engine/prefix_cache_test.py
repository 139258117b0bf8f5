"""Equal prefixes share blocks, unequal ones and other salts do not; the least recently used go first."""

from seed_jax.serving.engine.prefix_cache import PrefixCache


def stored(cache: PrefixCache, tokens: list[int], salt: str = "") -> int:
    """Store what is missing of a prompt, and return how many tokens were found."""
    hashes = cache.hashes(tokens, salt)
    found = len(cache.longest(hashes))
    for end in range(found, len(hashes)):
        cache.allocate(hashes[: end + 1])
    return found * cache.block_size


def test_full_blocks_of_equal_prefixes_are_found():
    cache = PrefixCache(100, 4)
    prompt = list(range(10))
    assert stored(cache, prompt) == 0
    assert stored(cache, prompt) == 8
    assert stored(cache, [*prompt[:8], 99, 98, 97, 96]) == 8
    assert stored(cache, prompt[:7]) == 4
    assert stored(cache, [99, *prompt[1:]]) == 0  # equal second block, unequal first
    assert stored(cache, prompt[4:]) == 0
    assert stored(cache, prompt, salt="tenant") == 0
    assert stored(cache, prompt, salt="tenant") == 8


def test_the_end_of_the_least_recently_used_prefix_is_evicted_first():
    cache = PrefixCache(4, 2)
    first, second = [1, 1, 1, 1], [2, 2, 2, 2]
    stored(cache, first)
    stored(cache, second)
    assert stored(cache, first) == 4
    assert stored(cache, [3, 3]) == 0  # takes the place of second's end
    assert stored(cache, first) == 4
    assert stored(cache, [2, 2]) == 2
    assert len(cache) == 4
    # Blocks are numbers of the store, each used once.
    prefixes = [cache.hashes(tokens, "") for tokens in (first, [2, 2], [3, 3])]
    assert sorted(block for prefix in prefixes for block in cache.longest(prefix)) == [0, 1, 2, 3]


def test_without_a_store_nothing_is_kept():
    cache = PrefixCache(0, 2)
    assert stored(cache, [1, 2, 3]) == 0
    assert stored(cache, [1, 2, 3]) == 0
