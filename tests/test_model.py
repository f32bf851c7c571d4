import socket

import pytest
import torch
import torchvision

from speech.model import WeightsError, build_model


@pytest.mark.parametrize(("channels", "rows", "frames"), [(1, 40, 51), (3, 64, 101), (2, 224, 224)])
def test_any_number_of_channels_and_any_size_of_picture(
    channels: int, rows: int, frames: int
) -> None:
    model = build_model(labels=11, channels=channels, weights="none").eval()
    with torch.no_grad():
        assert model(torch.zeros(2, channels, rows, frames)).shape == (2, 11)


def test_it_is_torchvisions_resnet34_except_for_the_first_and_last_layers() -> None:
    ours, theirs = (
        build_model(7, 1, "none").state_dict(),
        torchvision.models.resnet34().state_dict(),
    )
    differing = {key for key in theirs if ours[key].shape != theirs[key].shape}
    assert ours.keys() == theirs.keys()
    assert differing == {"conv1.weight", "fc.weight", "fc.bias"}


def test_saved_weights_come_back_and_keep_the_answer_to_a_grey_picture(tmp_path) -> None:
    torch.manual_seed(0)
    colour = torchvision.models.resnet34(num_classes=5).eval()
    torch.save(colour.state_dict(), tmp_path / "weights.pt")
    mono = build_model(5, 1, str(tmp_path / "weights.pt")).eval()
    grey = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            mono(grey), colour(grey.repeat(1, 3, 1, 1)), atol=1e-4, rtol=1e-3
        )


def test_a_last_layer_for_other_labels_is_left_out(tmp_path) -> None:
    trained = torchvision.models.resnet34(num_classes=1000)
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    model = build_model(4, 3, str(tmp_path / "weights.pt"))
    assert torch.equal(model.layer4[0].conv1.weight, trained.layer4[0].conv1.weight)
    assert model.fc.weight.shape == (4, 512)


def test_imagenet_without_a_network_says_what_to_do(tmp_path, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionRefusedError("no network in this test")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(WeightsError, match=r"https://\S+\.pth.*model\.weights: PATH"):
        build_model(4, 3, "imagenet")


def test_files_without_weights_of_this_model_are_named(tmp_path) -> None:
    with pytest.raises(WeightsError, match=r"gone\.pt .*exist"):
        build_model(4, 3, str(tmp_path / "gone.pt"))
    (tmp_path / "song.pt").write_bytes(b"la la la")
    with pytest.raises(WeightsError, match=r"song\.pt .*saved state_dict"):
        build_model(4, 3, str(tmp_path / "song.pt"))
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"other\.pt .*ResNet34.*\bbn1"):
        build_model(4, 3, str(tmp_path / "other.pt"))


def test_weights_are_loaded_without_running_code_from_the_file(tmp_path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"weight": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(WeightsError, match="trap"):
        build_model(4, 3, str(tmp_path / "trap.pt"))
    assert not (tmp_path / "sprung").exists()
