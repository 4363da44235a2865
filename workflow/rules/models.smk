# Base models: from the Hub, a folder, or made from scratch.
# Whatever reads a checkpoint depends on its small manifest, which holds the weights' checksum; the
# weights themselves are ancient(), so that their time does not matter.


rule base:
    input:
        data=lambda wildcards: copra.data(wildcards.base, "train", "valid"),
        tables=lambda wildcards: tables(copra.data(wildcards.base, "train", "valid")),
        files=lambda wildcards: here(copra.base_source(wildcards.base)),
    output:
        manifest="<results>/models/{base}/copra.json",
        weights=multiext("<results>/models/{base}/", *WEIGHTS),
    log:
        "<logs>/base/{base}.log",
    benchmark:
        "<benchmarks>/base/{base}.tsv"
    group:
        submissions.group("base/{base}")
    threads: copra.experiment.compute.threads
    resources:
        **SHARED,
        jobs_per_gpu=copra.experiment.compute.jobs_per_gpu,
        mem_mb=growing(copra.experiment.compute.memory_mb),
        runtime=submissions.minutes("base/{base}", 60),
    params:
        settings=lambda wildcards: copra.base_settings(wildcards.base),
        # A function of the output makes nothing run again.
        files=lambda wildcards, output: copra.place_of(copra.base_source(wildcards.base)),
    message:
        "Making base model {wildcards.base}"
    shell:
        "copra base --settings {params.settings:q} --files {params.files:q} --threads {threads}"
        " --jobs-per-gpu {resources.jobs_per_gpu} --data {input.data[0]}"
        " --output {output.manifest} > {log} 2>&1"
