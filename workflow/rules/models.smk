# Base models: from the Hub, a folder, or made from scratch.
# Whatever reads a checkpoint depends on its small manifest, which holds the weights' checksum; the
# weights themselves are ancient(), so that their time does not matter.


rule base:
    input:
        train=lambda wildcards: f"{copra.data(wildcards.base)}/train.parquet",
        valid=lambda wildcards: f"{copra.data(wildcards.base)}/valid.parquet",
        files=lambda wildcards: local(copra.base_files(wildcards.base)),
    output:
        manifest="<results>/models/{base}/copra.json",
        weights=multiext("<results>/models/{base}/", *WEIGHTS),
    log:
        "<logs>/base/{base}.log",
    benchmark:
        "<benchmarks>/base/{base}.tsv"
    threads: copra.experiment.compute.threads
    resources:
        jobs_per_gpu=copra.experiment.compute.jobs_per_gpu,
        mem_mb=growing(copra.experiment.compute.memory_mb),
        runtime=60,
    params:
        settings=lambda wildcards: copra.base_settings(wildcards.base),
    message:
        "Making base model {wildcards.base}"
    shell:
        "copra base --settings {params.settings:q} --threads {threads}"
        " --jobs-per-gpu {resources.jobs_per_gpu} --data {input.train}"
        " --output {output.manifest} > {log} 2>&1"
