"""What the diffusers host can sample with, by ComfyUI's names. Imports no diffusers, because flags name these."""

SAMPLERS = ("dpmpp_2m", "euler")  # Lu et al. 2022, "DPM-Solver++"; Karras et al. 2022, algorithm 1
SCHEDULERS = ("normal", "karras")  # the model's own noise levels, evenly; Karras et al. 2022, eq. 5
