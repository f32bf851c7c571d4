"""ResNet34 for pictures of C channels: (B, C, M, T) -> (B, labels) logits.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1, from torchvision. Only the first convolution and the
last layer differ: C input channels, as many outputs as labels. Weights come from nowhere, from torchvision's ImageNet download or
from a file of the user's; files are read without executing code from them.
"""

from pathlib import Path
from urllib.error import URLError

import torch
import torchvision


class WeightsError(ValueError):
    """Weights that were asked for can't be had; the text says why and what to do."""


def build(labels: int, channels: int, weights: str) -> torch.nn.Module:
    """ResNet34 with `channels` inputs and `labels` outputs. `weights`: 'none', 'imagenet' or the path of a state_dict.

    Raises WeightsError where there is no network, no such file, or a file that holds no ResNet34.
    """
    model = torchvision.models.resnet34(num_classes=labels)
    model.conv1 = torch.nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    torch.nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    if weights != "none":
        _adopt(model, _imagenet() if weights == "imagenet" else read_weights(Path(weights), "model.weights: "), weights)
    return model


def _imagenet() -> dict[str, torch.Tensor]:
    source = torchvision.models.ResNet34_Weights.IMAGENET1K_V1
    try:
        return dict(source.get_state_dict(progress=False, check_hash=True))
    except (URLError, TimeoutError, ConnectionError) as error:
        raise WeightsError(
            f"model.weights: imagenet needs {source.url} and it can't be reached ({error}). Download it where there is a network and "
            "write model.weights: PATH, or train from scratch with model.weights: none."
        ) from error


def read_weights(path: Path, key: str = "") -> dict[str, torch.Tensor]:
    """A saved state_dict, read without executing code from the file. Raises WeightsError, its text starting with `key` and the path."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        mend = " Write the path of a saved state_dict, imagenet or none." if key else ""
        raise WeightsError(f"{key}{path} does not exist.{mend}") from None
    except Exception as error:  # torch.load raises what its unpickler meets: any type
        raise WeightsError(f"{key}{path} is not a saved state_dict of tensors ({type(error).__name__}: {error}).") from error
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise WeightsError(f"{key}{path} holds {type(weights).__name__}, not a state_dict of tensors. Save model.state_dict().")
    return weights


def _adopt(model: torch.nn.Module, weights: dict[str, torch.Tensor], name: str) -> None:
    """Loads `weights`; the first convolution is spread over other channel counts, a last layer for other labels is left out."""
    own = model.state_dict()
    missing = sorted(set(own) - set(weights))
    if missing:
        raise WeightsError(f"model.weights: {name} is not a ResNet34: it lacks {', '.join(missing[:3])} and {len(missing)} entries in all.")
    adopted = {key: weights[key] for key in own}
    adopted["conv1.weight"] = _spread(adopted["conv1.weight"], own["conv1.weight"].shape[1])
    if adopted["fc.weight"].shape != own["fc.weight"].shape:
        adopted |= {"fc.weight": own["fc.weight"], "fc.bias": own["fc.bias"]}
    wrong = [key for key in own if adopted[key].shape != own[key].shape]
    if wrong:
        raise WeightsError(f"model.weights: {name} is not a ResNet34: {wrong[0]} has shape {tuple(adopted[wrong[0]].shape)}.")
    model.load_state_dict(adopted)


def _spread(kernel: torch.Tensor, channels: int) -> torch.Tensor:
    """(64, 3, 7, 7) -> (64, C, 7, 7): the mean over colours, scaled so that the response to a grey picture stays the same."""
    colours = kernel.shape[1]
    if colours == channels:
        return kernel
    return kernel.mean(dim=1, keepdim=True).repeat(1, channels, 1, 1) * (colours / channels)
