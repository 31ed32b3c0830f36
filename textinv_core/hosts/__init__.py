"""What a model must offer to be trained on (`base`), and who offers it (`comfy`, `diffusers`)."""
