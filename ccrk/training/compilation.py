"""`torch.compile` of what a step spends its time on."""

from modeling_ccrk import CCRKPairModel


def compile_encoders(model: CCRKPairModel, backend: str, mode: str | None) -> None:
    """
    Compiles the image encoder, and the layers of text and fusion encoder, in place: names of parameters stay.

    What is between them decides shapes by what captions hold, and would break a graph. Captions' lengths differ from
    batch to batch: the graph of a layer takes any, and all layers of a kind share it.
    """
    model.ccrk.vision_model.compile(backend=backend, mode=mode)
    for layer in (*model.ccrk.text_model.encoder.layer, *model.ccrk.fusion_encoder.layers):
        layer.compile(backend=backend, mode=mode, dynamic=True)
