import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("diffusers")
from transformers import CLIPTokenizer

from benchmarks.toyworld import models, world
from textinv_core.hosts.pipelines import load


def test_each_word_is_one_token(tmp_path):
    models.write_tokenizer(tmp_path, world.words())
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    for word in world.words():
        assert len(tokenizer(word, add_special_tokens=False).input_ids) == 1, word
    unheard = "zebra crossing 7"
    assert tokenizer.decode(tokenizer(unheard, add_special_tokens=False).input_ids) == unheard


def test_the_vocabulary_begins_as_clips_does():
    vocab, _ = models.vocabulary(["red"])
    assert [vocab[token] for token in ("!", "~", "\u00a1", "\u0100", "!</w>")] == [0, 93, 94, 188, 256]
    assert vocab["<|endoftext|>"] == len(vocab) - 1


def test_the_file_holds_every_weight(tmp_path):
    """Read back by diffusers' own conversion from LDM's keys."""
    torch.manual_seed(0)
    parts = models.unet(), models.vae(), models.text_encoder(world.words())
    models.write_configs(tmp_path, world.words())
    save_file(models.ldm_state(*parts), tmp_path / "toyworld.safetensors")
    pipe = load(tmp_path / "toyworld.safetensors", config=tmp_path)
    for made, loaded in zip(parts, (pipe.unet, pipe.vae, pipe.text_encoder), strict=True):
        expected = {key: value for key, value in made.state_dict().items() if not key.endswith("position_ids")}
        assert expected.keys() <= loaded.state_dict().keys()
        for key, value in expected.items():
            torch.testing.assert_close(loaded.state_dict()[key], value.half().float(), msg=key)


def test_scaled_latents_have_sds_spread_and_decode_to_the_same():
    torch.manual_seed(0)
    vae = models.vae().eval()
    pictures = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before = vae.encode(pictures).latent_dist
        decoded = vae.decode(before.mean).sample
        models.scale_latents(vae, before.mean.std().item())
        after = vae.encode(pictures).latent_dist
        torch.testing.assert_close(vae.decode(after.mean).sample, decoded, rtol=1e-3, atol=1e-4)
    assert (after.mean * models.VAE["scaling_factor"]).std().item() == pytest.approx(1, rel=1e-3)
    torch.testing.assert_close(after.std / before.std, torch.full_like(after.std, after.mean.std() / before.mean.std()))
