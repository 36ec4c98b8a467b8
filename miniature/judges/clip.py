"""The miniature CLIP: similarities between pictures, and between pictures and sentences."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from miniature.judges.attributes import ATTRIBUTES
from miniature.paint import SIZE
from trainer.evaluation.judges import Clip

BUNDLED = Path(__file__).parents[1] / "clip"


def new_clip(tokenizer: Any) -> Any:
    """An untrained CLIPModel for the tokenizer's vocabulary and pictures of SIZE pixels, in patches of 8."""
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
    """The processor that makes a CLIPModel's inputs from pictures and sentences; pixels are in [-1, 1]."""
    images = CLIPImageProcessor(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return CLIPProcessor(image_processor=images, tokenizer=tokenizer)


class Judge(Clip):
    """A CLIP that judges the attributes of drawings: the bundled one, or any other in transformers' layout."""

    @classmethod
    def load(cls, source: str | Path = BUNDLED, *, device: torch.device | str = "cpu") -> Self:
        """From a folder or a hub id. Raises OSError if it does not exist."""
        return super().load(source, device=device)

    def judge(self, images: Sequence[Image.Image]) -> Mapping[str, torch.Tensor]:
        """Probabilities [images, answers] of each attribute, from the sentences of its answers."""
        seen = self.look(images)
        scale = self._model.logit_scale.exp()
        return {
            name: (scale * seen @ self.read(attribute.sentences).T).softmax(dim=1)
            for name, attribute in ATTRIBUTES.items()
        }
