"""Builds ResNet34 for pictures of C channels: (B, C, M, T) -> (B, labels) logits.

It is the network of He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1,
as implemented by torchvision. Only the first convolution and the last layer differ: they have C
input channels and one output per label. Weights are random, from torchvision's ImageNet download,
or from a file of the user. Files are read without executing code from them.
"""

from pathlib import Path

import torch
import torchvision


class WeightsError(ValueError):
    """Reports that requested weights are unavailable; the text states the reason and the remedy."""


def build_model(labels: int, channels: int, weights: str) -> torch.nn.Module:
    """Builds a ResNet34 with `channels` input channels and `labels` outputs.

    `weights` is 'none', 'imagenet' or the path of a state_dict. Raises WeightsError without network
    access, without such a file, or if the file does not hold the weights of a ResNet34.
    """
    model = torchvision.models.resnet34(num_classes=labels)
    model.conv1 = torch.nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    torch.nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    if weights != "none":
        _load_weights(
            model,
            (
                _download_imagenet()
                if weights == "imagenet"
                else read_weights(Path(weights), "model.weights: ")
            ),
            weights,
        )
    return model


def _download_imagenet() -> dict[str, torch.Tensor]:
    """Loads torchvision's ImageNet weights, from its cache or the network."""
    source = torchvision.models.ResNet34_Weights.IMAGENET1K_V1
    try:
        return dict(source.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:  # no network, a full disk, or a wrong checksum
        raise WeightsError(
            f"model.weights: imagenet needs {source.url}, which can't be reached ({error})."
            " Download it where there is a network and write model.weights: PATH, or train from"
            " scratch with model.weights: none."
        ) from error


def read_weights(path: Path, key: str = "") -> dict[str, torch.Tensor]:
    """Reads a saved state_dict without executing code from the file.

    Raises WeightsError; its text starts with `key` and the path.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        mend = " Write the path of a saved state_dict, imagenet or none." if key else ""
        raise WeightsError(f"{key}{path} does not exist.{mend}") from None
    except Exception as error:  # torch.load raises any exception of its unpickler
        raise WeightsError(
            f"{key}{path} is not a saved state_dict of tensors ({type(error).__name__}: {error})."
        ) from error
    if not isinstance(weights, dict) or not all(
        isinstance(value, torch.Tensor) for value in weights.values()
    ):
        raise WeightsError(
            f"{key}{path} holds {type(weights).__name__}, not a state_dict of tensors. Save"
            " model.state_dict()."
        )
    return weights


def _load_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor], name: str) -> None:
    """Loads `weights` into `model`.

    The first convolution is adapted to another number of channels. A last layer for another number
    of labels is not loaded. Raises WeightsError, which names the weights by `name`.
    """
    own = model.state_dict()
    missing = sorted(set(own) - set(weights))
    if missing:
        raise WeightsError(
            f"model.weights: {name} is not a ResNet34: it lacks {len(missing)} entries, such as"
            f" {', '.join(missing[:3])}."
        )
    new = {key: weights[key] for key in own}
    new["conv1.weight"] = _adapt_channels(new["conv1.weight"], own["conv1.weight"].shape[1])
    if new["fc.weight"].shape != own["fc.weight"].shape:
        new |= {"fc.weight": own["fc.weight"], "fc.bias": own["fc.bias"]}
    mismatched = [key for key in own if new[key].shape != own[key].shape]
    if mismatched:
        raise WeightsError(
            f"model.weights: {name} is not a ResNet34: {mismatched[0]} has shape"
            f" {tuple(new[mismatched[0]].shape)}."
        )
    if not_finite := [key for key in own if not new[key].isfinite().all()]:
        defect = (
            f"{len(not_finite)} entries, {not_finite[0]} first, hold values that are not finite"
        )
        raise WeightsError(
            f"model.weights: {name} comes from a diverged training: {defect}. Write another"
            " file, or none."
        )
    model.load_state_dict(new)


def _adapt_channels(kernel: torch.Tensor, channels: int) -> torch.Tensor:
    """Converts a kernel (64, 3, 7, 7) to (64, C, 7, 7): the mean over colours, scaled.

    The scale preserves the response to a grey picture.
    """
    colours = kernel.shape[1]
    if colours == channels:
        return kernel
    return kernel.mean(dim=1, keepdim=True).repeat(1, channels, 1, 1) * (colours / channels)
