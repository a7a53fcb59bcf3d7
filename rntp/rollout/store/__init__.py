"""A store between a trainer and its samplers: files, and nothing else that either must reach.

    run.json                                   the config, written by the trainer
    head.json                                  newest weights and open steps; rewritten
    model/…                                    config and tokenizer of the model, for transformers
    weights/v00000012-<digest>/…               weights, whole or what has changed; see `manifest`
    work/step_00000013-<digest>                the contexts of a step
    leases/step_…/part_000.a001                who samples a part of them: the first attempt
    rollouts/step_…/part_000.a001.<sampler>    and what came of it
    samplers/<sampler>                         a number that grows while a sampler lives

Everybody pulls: no process listens on a port, none needs the address of another. Files are found by
their numbers; nothing is listed but for messages. All of them are sealed (`seal`): what is torn,
altered, or lies in another's place is refused.
"""
