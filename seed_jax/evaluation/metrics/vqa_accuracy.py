"""VQA accuracy by the official rules of VQAv2, OK-VQA, VizWiz and TextVQA, and GQA's exact match.

An answer is as right as nine of ten people agree with it: 1, 2, 3, 4 equal answers of ten score 0.3, 0.6, 0.9, 1.
"""

import re
import string
from collections.abc import Sequence

# In this order. A mark is removed where it touches a space anywhere in the text, otherwise replaced by a space.
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
# The official pattern is `(?!<=\d)(\.)(?!\d)`, whose first group always holds, and its call gives re.UNICODE, 32, where
# the number of replacements belongs.
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32
_NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
# The official contraction table: each word and the spellings that become it. Its keys with capitals are left out, as
# they never match lower-case text; the odd "somebodyd" and the words that are missing are the table's own.
_SPELLINGS_OF = {
    "ain't": "aint", "aren't": "arent", "can't": "cant", "could've": "couldve", "couldn't": "couldnt",
    "couldn't've": "couldn'tve couldnt've", "didn't": "didnt", "doesn't": "doesnt", "don't": "dont",
    "hadn't": "hadnt", "hadn't've": "hadnt've hadn'tve", "hasn't": "hasnt", "haven't": "havent", "he'd": "hed",
    "he'd've": "hed've he'dve", "he's": "hes", "how'd": "howd", "how'll": "howll", "how's": "hows", "isn't": "isnt",
    "it'd": "itd", "it'd've": "itd've it'dve", "it'll": "itll", "ma'am": "maam", "mightn't": "mightnt",
    "mightn't've": "mightnt've mightn'tve", "might've": "mightve", "mustn't": "mustnt", "must've": "mustve",
    "needn't": "neednt", "not've": "notve", "o'clock": "oclock", "oughtn't": "oughtnt",
    "'ow's'at": "ow's'at 'ows'at 'ow'sat", "shan't": "shant", "she'd've": "shed've she'dve", "should've": "shouldve",
    "shouldn't": "shouldnt", "shouldn't've": "shouldnt've shouldn'tve", "somebodyd": "somebody'd",
    "somebody'd've": "somebodyd've somebody'dve", "somebody'll": "somebodyll", "somebody's": "somebodys",
    "someone'd": "someoned", "someone'd've": "someoned've someone'dve", "someone'll": "someonell",
    "someone's": "someones", "something'd": "somethingd", "something'd've": "somethingd've something'dve",
    "something'll": "somethingll", "that's": "thats", "there'd": "thered", "there'd've": "thered've there'dve",
    "there're": "therere", "there's": "theres", "they'd": "theyd", "they'd've": "theyd've they'dve",
    "they'll": "theyll", "they're": "theyre", "they've": "theyve", "'twas": "twas", "wasn't": "wasnt",
    "we'd've": "wed've we'dve", "we've": "weve", "weren't": "werent", "what'll": "whatll", "what're": "whatre",
    "what's": "whats", "what've": "whatve", "when's": "whens", "where'd": "whered", "where's": "wheres",
    "where've": "whereve", "who'd": "whod", "who'd've": "whod've who'dve", "who'll": "wholl", "who's": "whos",
    "who've": "whove", "why'll": "whyll", "why're": "whyre", "why's": "whys", "won't": "wont", "would've": "wouldve",
    "wouldn't": "wouldnt", "wouldn't've": "wouldnt've wouldn'tve", "y'all": "yall", "y'all'll": "yall'll y'allll",
    "y'all'd've": "yall'd've y'alld've y'all'dve", "you'd": "youd", "you'd've": "youd've you'dve", "you'll": "youll",
    "you're": "youre", "you've": "youve",
}  # fmt: skip
_CONTRACTIONS = {spelling: word for word, spellings in _SPELLINGS_OF.items() for spelling in spellings.split()}


def normalize_answer(text: str) -> str:
    """Normalize punctuation, number words, articles and contractions as the official VQA evaluation does."""
    text = _clean(text)
    remove = _DIGIT_COMMA_DIGIT.search(text) is not None
    result = text
    for mark in _PUNCTUATION:
        touches_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if remove or touches_space else " ")
    result = _PERIOD.sub("", result, count=_MAX_PERIODS)
    words = [_NUMBER_WORDS.get(word, word) for word in result.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Score an answer against people's answers by the official rule.

    The texts are normalized only where the answers are not all equal: "Yes." scores 0 against ten times "yes". Clean
    predictions with `short_answer` first, and say so where the score is reported.

    Args:
        prediction: the model's answer.
        answers: the ten people's answers, told apart by their position.

    Returns:
        The accuracy from 0 to 1.
    """
    prediction, answers = _clean(prediction), [_clean(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction, answers = normalize_answer(prediction), [normalize_answer(answer) for answer in answers]
    matches = answers.count(prediction)
    total = 0.0
    for answer in answers:
        total += min(1.0, (matches - (answer == prediction)) / 3)
    return total / len(answers)


def short_answer(text: str) -> str:
    """Strip whitespace and a final period and lower-case, as a model that answers in sentences needs before scoring."""
    return text.strip().removesuffix(".").rstrip().lower()


def gqa_match(prediction: str, answer: str) -> bool:
    """Compare with GQA's only answer, ignoring case and punctuation."""
    return _without_punctuation(prediction) == _without_punctuation(answer)


def _clean(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(text: str) -> str:
    return text.strip().lower().translate(str.maketrans("", "", string.punctuation))
