"""Text encoders with random weights and real tokenizers, in folders laid out like t5-v1_1-xl and CLIP-ViT-bigG-14.

Random networks still map different captions to different features, which is all that a denoiser needs of frozen
encoders: every attribute of the quickstart's captions can be read off the pooled features by a linear map.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

T5_WIDTH, CLIP_WIDTH = 64, 32
_END = "</w>"  # of a word, in CLIP's tokens


def write_encoders(folder: Path, texts: list[str], seed: int = 0) -> tuple[Path, Path]:
    """Write both encoders with tokenizers trained on `texts`; returns the two folders."""
    t5, clip = folder / "t5", folder / "clip"
    _write_t5(t5, texts, seed)
    _write_clip(clip, texts, seed)
    return t5, clip


def _write_t5(folder: Path, texts: list[str], seed: int) -> None:
    tokenizer = Tokenizer(models.Unigram(_vocabulary(texts), unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="<pad>", model_max_length=512
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=tokenizer.get_vocab_size(),
        d_model=T5_WIDTH,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    T5EncoderModel(config).eval().save_pretrained(folder)


def _vocabulary(texts: list[str]) -> list[tuple[str, float]]:
    """Tokens with their log-probabilities: each word is one token, and any other word is spelled in characters."""
    words = sorted({f"\u2581{word}" for text in texts for word in text.split()})
    characters = sorted({character for word in words for character in word} - set(words))
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return special + [(word, -1.0) for word in words] + [(character, -10.0) for character in characters]


def _byte_pairs(texts: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Characters, and merges that build each word from its start. In a fixed order, which `BpeTrainer` does not keep: its
    numbers for the last characters of words differ from run to run, and with them the features of every caption."""
    split = pre_tokenizers.Whitespace()
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text.lower())})
    spelled = [[*word[:-1], word[-1] + _END] for word in words]
    merges: dict[tuple[str, str], None] = {}
    for symbols in spelled:
        merged = symbols[0]
        for symbol in symbols[1:]:
            merges[merged, symbol] = None
            merged += symbol
    return sorted({symbol for symbols in spelled for symbol in symbols}), list(merges)


def _write_clip(folder: Path, texts: list[str], seed: int) -> None:
    start, end = "<|startoftext|>", "<|endoftext|>"
    alphabet, merges = _byte_pairs(texts)
    tokens = [start, end, *alphabet, *dict.fromkeys(first + second for first, second in merges)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=end, end_of_word_suffix=_END))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, 0), (end, 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=start, eos_token=end, unk_token=end, pad_token=end, model_max_length=77
    ).save_pretrained(folder)
    torch.manual_seed(seed + 1)
    config = CLIPTextConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=CLIP_WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=CLIP_WIDTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    CLIPTextModelWithProjection(config).eval().save_pretrained(folder)
