# Quantization: the same model with int8 weights, and a record of what that changed.


rule quantize:
    input:
        parent=lambda wildcards: f"{copra.parent(wildcards.node)}/copra.json",
        weights=lambda wildcards: weights(copra.parent(wildcards.node)),
        valid=lambda wildcards: copra.data(wildcards.node, "valid"),
        tables=lambda wildcards: tables(copra.data(wildcards.node, "valid")),
    output:
        manifest="<results>/models/{node}/copra.json",
        weights=multiext("<results>/models/{node}/", *WEIGHTS),
    log:
        "<logs>/quantize/{node}.log",
    benchmark:
        "<benchmarks>/quantize/{node}.tsv"
    wildcard_constraints:
        node=copra.quantized,
    group:
        submissions.group("quantize/{node}")
    threads: copra.experiment.compute.threads
    resources:
        **SHARED,
        gpu=min(1, copra.experiment.compute.gpu),
        jobs_per_gpu=copra.experiment.compute.jobs_per_gpu,
        mem_mb=growing(copra.experiment.compute.memory_mb),
        runtime=submissions.minutes("quantize/{node}", 60),
    params:
        settings=lambda wildcards: copra.quantize_settings(wildcards.node),
    message:
        "Quantizing to {wildcards.node}"
    shell:
        "copra quantize --settings {params.settings:q} --threads {threads}"
        " --jobs-per-gpu {resources.jobs_per_gpu} --parent {input.parent}"
        " --data {input.valid} --output {output.manifest} > {log} 2>&1"
