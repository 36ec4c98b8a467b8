"""Sentences for training and evaluation, with `{}` in the word's place, and the default words that vectors start from.

The neutral object contexts and the style contexts follow the paper's appendix (arXiv 2208.01618). Each list begins with
sentences whose words are in a small vocabulary too.
"""

from collections.abc import Mapping, Sequence

# The default start of each kind: the first of these words that the vocabulary has.
STARTS: Mapping[str, Sequence[str]] = {
    "object": ("object", "thing", "toy"),
    "style": ("painting", "style", "art"),
    "face": ("face", "person", "toy"),
}
OBJECT = (
    "a photo of a {}",
    "a rendering of a {}",
    "a picture of a {}",
    "a photo of the {}",
    "a close-up photo of a {}",
    "a good photo of a {}",
    "a photo of one {}",
    "the photo of a {}",
)
STYLE = (
    "a painting in the style of {}",
    "a picture in the style of {}",
    "a photo in the style of {}",
    "a rendering in the style of {}",
    "a close-up painting in the style of {}",
    "a good painting in the style of {}",
)
# A person's name takes no article.
FACE = (
    "a photo of {}",
    "a picture of {}",
    "a portrait of {}",
    "a close-up photo of {}",
    "a photo of the face of {}",
    "a good photo of {}",
    "a rendering of {}",
)
TEMPLATES: Mapping[str, Sequence[str]] = {"object": OBJECT, "style": STYLE, "face": FACE}
# Sentences that a word must still follow if it has learned its thing or style only. With the kind's usual word in its
# place, a sentence says what the picture should show (CLIP-T, arXiv 2208.01618, section 5).
EDITS: Mapping[str, Sequence[str]] = {
    "object": (
        "a photo of a {} on the beach",
        "a photo of a {} in the snow",
        "a watercolor painting of a {}",
        "a sketch of a {}",
    ),
    "style": (
        "a picture of a house in the style of {}",
        "a picture of a dog in the style of {}",
        "a picture of a car in the style of {}",
        "a picture of a tree in the style of {}",
    ),
    "face": (
        "a photo of {} on the beach",
        "a photo of {} in the snow",
        "a watercolor painting of {}",
        "a sketch of {}",
    ),
}
