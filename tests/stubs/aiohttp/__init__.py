"""The library that ComfyUI's server is made of."""
