"""The miniature CLIP: which pictures are alike, and which sentence says what a picture shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from miniature.judges.attributes import ATTRIBUTES
from miniature.paint import SIZE

BUNDLED = Path(__file__).parents[1] / "clip"


def new_clip(tokenizer: Any) -> Any:
    """An untrained CLIPModel that reads the tokenizer's entries and looks at SIZE pixels in patches of 8."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 160,
        "intermediate_size": 640,
        "num_hidden_layers": 5,
        "num_attention_heads": 5,
        "image_size": SIZE,
        "patch_size": 8,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def new_processor(tokenizer: Any) -> Any:
    """What makes a CLIPModel's inputs of pictures and sentences: pixels of -1 to 1."""
    images = CLIPImageProcessor(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return CLIPProcessor(image_processor=images, tokenizer=tokenizer)


class Judge:
    """A CLIPModel and its processor, frozen; the bundled ones or any others in transformers' layout."""

    def __init__(self, model: Any, processor: Any) -> None:
        self._model = model.float().eval().requires_grad_(False)
        self._processor = processor

    @classmethod
    def load(cls, source: str | Path = BUNDLED) -> "Judge":
        """From a folder or a hub id. Raises OSError where there is none."""
        return cls(CLIPModel.from_pretrained(source), CLIPProcessor.from_pretrained(source))

    @torch.no_grad()
    def look(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Unit vectors [images, dims]; the mean product of two sets' vectors is CLIP-I."""
        inputs = self._processor.image_processor(images=list(images), return_tensors="pt")
        states = self._model.vision_model(pixel_values=inputs["pixel_values"]).pooler_output
        return torch.nn.functional.normalize(self._model.visual_projection(states), dim=-1)

    @torch.no_grad()
    def read(self, sentences: Sequence[str]) -> torch.Tensor:
        """Unit vectors [sentences, dims]; their products with pictures' vectors are CLIP-T."""
        inputs = self._processor.tokenizer(list(sentences), padding="max_length", truncation=True, return_tensors="pt")
        states = self._model.text_model(input_ids=inputs["input_ids"]).pooler_output
        return torch.nn.functional.normalize(self._model.text_projection(states), dim=-1)

    def judge(self, images: Sequence[Image.Image]) -> Mapping[str, torch.Tensor]:
        """Probabilities [images, answers] of each attribute, from the sentences that say its answers."""
        seen = self.look(images)
        scale = self._model.logit_scale.exp()
        return {
            name: (scale * seen @ self.read(attribute.sentences).T).softmax(dim=1)
            for name, attribute in ATTRIBUTES.items()
        }
