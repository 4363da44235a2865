# Figures, each from a table, from scores or from training logs.


rule accuracy_figure:
    input:
        table="<results>/tables/accuracy_vs_flops.parquet",
    output:
        svg=report(
            "<results>/figures/accuracy_vs_flops.svg",
            caption="../report/accuracy_vs_flops.rst",
            category="Figures",
        ),
        png="<results>/figures/accuracy_vs_flops.png",
    log:
        "<logs>/figure/accuracy_vs_flops.log",
    benchmark:
        "<benchmarks>/figure/accuracy_vs_flops.tsv"
    localrule: True
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        settings=lambda wildcards: copra.figure_settings("accuracy_vs_flops"),
    message:
        "Drawing accuracy against FLOPs"
    shell:
        "copra figure --settings {params.settings:q} --input {input.table}"
        " --svg {output.svg} --png {output.png} > {log} 2>&1"


rule training_figure:
    input:
        manifests=expand("<results>/models/{node}/copra.json", node=copra.trainings),
        logs=ancient(expand("<results>/models/{node}/training.jsonl", node=copra.trainings)),
    output:
        svg=report(
            "<results>/figures/training_curves.svg",
            caption="../report/training_curves.rst",
            category="Figures",
        ),
        png="<results>/figures/training_curves.png",
    log:
        "<logs>/figure/training_curves.log",
    benchmark:
        "<benchmarks>/figure/training_curves.tsv"
    localrule: True
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        settings=lambda wildcards: copra.figure_settings("training_curves"),
        models=lambda wildcards, input: above(input.logs, 2),
    message:
        "Drawing the training curves"
    shell:
        "copra figure --settings {params.settings:q} --input {params.models}"
        " --svg {output.svg} --png {output.png} > {log} 2>&1"


rule curriculum_figure:
    input:
        metrics=expand("<results>/evaluations/{node}/metrics.json", node=copra.staged),
    output:
        svg=report(
            "<results>/figures/curriculum.svg",
            caption="../report/curriculum.rst",
            category="Figures",
        ),
        png="<results>/figures/curriculum.png",
    log:
        "<logs>/figure/curriculum.log",
    benchmark:
        "<benchmarks>/figure/curriculum.tsv"
    localrule: True
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        settings=lambda wildcards: copra.figure_settings("curriculum"),
        evaluations=lambda wildcards, input: above(input.metrics, 2),
    message:
        "Drawing accuracy after each stage"
    shell:
        "copra figure --settings {params.settings:q} --input {params.evaluations}"
        " --svg {output.svg} --png {output.png} > {log} 2>&1"


rule layer_figure:
    input:
        scores="<results>/scores/{node}/{objective}/passes.json",
        tables=tables(["<results>/scores/{node}/{objective}/passes.json"]),
    output:
        svg=report(
            "<results>/figures/layer_distances/{node}/{objective}.svg",
            caption="../report/layer_distances.rst",
            category="Figures",
        ),
        png="<results>/figures/layer_distances/{node}/{objective}.png",
    log:
        "<logs>/figure/layer_distances/{node}/{objective}.log",
    benchmark:
        "<benchmarks>/figure/layer_distances/{node}/{objective}.tsv"
    localrule: True
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        settings=lambda wildcards: copra.figure_settings("layer_distances"),
    message:
        "Drawing the layer distances of {wildcards.node}"
    shell:
        "copra figure --settings {params.settings:q} --input {input.tables}"
        " --svg {output.svg} --png {output.png} > {log} 2>&1"


rule head_figure:
    input:
        scores="<results>/scores/{node}/{objective}/passes.json",
        tables=tables(["<results>/scores/{node}/{objective}/passes.json"]),
        manifest="<results>/models/{node}/copra.json",
    output:
        svg=report(
            "<results>/figures/head_importance/{node}/{objective}.svg",
            caption="../report/head_importance.rst",
            category="Figures",
        ),
        png="<results>/figures/head_importance/{node}/{objective}.png",
    log:
        "<logs>/figure/head_importance/{node}/{objective}.log",
    benchmark:
        "<benchmarks>/figure/head_importance/{node}/{objective}.tsv"
    localrule: True
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        settings=lambda wildcards: copra.figure_settings("head_importance"),
    message:
        "Drawing the head importance of {wildcards.node}"
    shell:
        "copra figure --settings {params.settings:q} --input {input.tables} --model {input.manifest}"
        " --svg {output.svg} --png {output.png} > {log} 2>&1"


rule latents_figure:
    input:
        table="<results>/tables/accuracy_vs_latents.parquet",
    output:
        svg=report(
            "<results>/figures/accuracy_vs_latents.svg",
            caption="../report/accuracy_vs_latents.rst",
            category="Figures",
        ),
        png="<results>/figures/accuracy_vs_latents.png",
    log:
        "<logs>/figure/accuracy_vs_latents.log",
    benchmark:
        "<benchmarks>/figure/accuracy_vs_latents.tsv"
    localrule: True
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        settings=lambda wildcards: copra.figure_settings("accuracy_vs_latents"),
    message:
        "Drawing accuracy against the number of latents"
    shell:
        "copra figure --settings {params.settings:q} --input {input.table}"
        " --svg {output.svg} --png {output.png} > {log} 2>&1"


rule lens_figure:
    input:
        seen="<results>/evaluations/{node}/lens.parquet",
    output:
        svg=report(
            "<results>/figures/latent_lens/{node}.svg",
            caption="../report/latent_lens.rst",
            category="Figures",
        ),
        png="<results>/figures/latent_lens/{node}.png",
    log:
        "<logs>/figure/latent_lens/{node}.log",
    benchmark:
        "<benchmarks>/figure/latent_lens/{node}.tsv"
    localrule: True
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        settings=lambda wildcards: copra.figure_settings("latent_lens"),
    message:
        "Drawing what the latents of {wildcards.node} would say"
    shell:
        "copra figure --settings {params.settings:q} --input {input.seen}"
        " --svg {output.svg} --png {output.png} > {log} 2>&1"


rule curve_figure:
    input:
        table="<results>/tables/pruning_curves.parquet",
    output:
        svg=report(
            "<results>/figures/pruning_curves/{curve}.svg",
            caption="../report/pruning_curves.rst",
            category="Figures",
        ),
        png="<results>/figures/pruning_curves/{curve}.png",
    log:
        "<logs>/figure/pruning_curves/{curve}.log",
    benchmark:
        "<benchmarks>/figure/pruning_curves/{curve}.tsv"
    localrule: True
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        settings=lambda wildcards: copra.figure_settings("pruning_curves", wildcards.curve),
    message:
        "Drawing pruning curve {wildcards.curve}"
    shell:
        "copra figure --settings {params.settings:q} --input {input.table}"
        " --svg {output.svg} --png {output.png} > {log} 2>&1"


rule order_figure:
    input:
        manifest=lambda wildcards: f"<results>/models/{copra.curved[wildcards.curve][0]}/copra.json",
        scores=lambda wildcards: copra.curve_scores(wildcards.curve, copra.curved[wildcards.curve][0]),
        tables=lambda wildcards: tables(copra.curve_scores(wildcards.curve, copra.curved[wildcards.curve][0])),
    output:
        svg=report(
            "<results>/figures/drop_orders/{curve}.svg",
            caption="../report/drop_orders.rst",
            category="Figures",
        ),
        png="<results>/figures/drop_orders/{curve}.png",
    log:
        "<logs>/figure/drop_orders/{curve}.log",
    benchmark:
        "<benchmarks>/figure/drop_orders/{curve}.tsv"
    localrule: True
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        settings=lambda wildcards: copra.figure_settings("drop_orders", wildcards.curve),
        scores=lambda wildcards, input: above(input.scores, 3),
    message:
        "Drawing what the metrics of curve {wildcards.curve} would remove"
    shell:
        "copra figure --settings {params.settings:q} --input {params.scores} --model {input.manifest}"
        " --svg {output.svg} --png {output.png} > {log} 2>&1"


rule after_figure:
    input:
        table="<results>/tables/accuracy_vs_flops.parquet",
    output:
        svg=report(
            "<results>/figures/after_fine_tuning.svg",
            caption="../report/after_fine_tuning.rst",
            category="Figures",
        ),
        png="<results>/figures/after_fine_tuning.png",
    log:
        "<logs>/figure/after_fine_tuning.log",
    benchmark:
        "<benchmarks>/figure/after_fine_tuning.tsv"
    localrule: True
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        settings=lambda wildcards: copra.figure_settings("after_fine_tuning"),
    message:
        "Drawing accuracy after pruning and fine-tuning"
    shell:
        "copra figure --settings {params.settings:q} --input {input.table}"
        " --svg {output.svg} --png {output.png} > {log} 2>&1"
