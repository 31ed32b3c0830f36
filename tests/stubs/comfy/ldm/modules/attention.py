from torch import Tensor


def attention_pytorch(q: Tensor, k: Tensor, v: Tensor, heads: int, *args, **kwargs) -> Tensor: ...
