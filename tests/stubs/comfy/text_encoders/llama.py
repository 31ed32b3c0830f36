import torch


class TransformerBlock(torch.nn.Module): ...


class Llama2_(torch.nn.Module):
    layers: torch.nn.ModuleList
