"""Sentences to train with and to evaluate with, `{}` in the word's place, and the words that vectors start from unless
somebody says better.

The neutral object contexts and the style contexts are after the paper's appendix (arXiv 2208.01618); each begins with
those that a small vocabulary knows too.
"""

from collections.abc import Mapping, Sequence

# The first that the vocabulary has.
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
# Whoever it is has no article.
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
# What a word that has learned only its thing, or its style, is still drawn in. The kind's usual word in its place says
# what a picture of it should show (CLIP-T, arXiv 2208.01618, section 5).
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
