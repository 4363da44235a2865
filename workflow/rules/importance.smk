# Importance: how much each layer, head and key/value group matters to a model.


rule score:
    input:
        manifest="results/models/{node}/copra.json",
        weights=ancient("results/models/{node}/model.safetensors"),
        train=lambda wildcards: f"{copra.data(wildcards.node)}/train.parquet",
    output:
        scores="results/scores/{node}/{unit}.parquet",
    log:
        "results/logs/score/{node}.{unit}.log",
    benchmark:
        "results/benchmarks/score/{node}.{unit}.tsv"
    threads: copra.experiment.compute.threads
    resources:
        gpu=copra.experiment.compute.gpu,
        mem_mb=copra.experiment.compute.memory_mb,
        runtime=copra.experiment.compute.runtime_minutes,
    params:
        settings=lambda wildcards: copra.score_settings(wildcards.unit),
    message:
        "Scoring the {wildcards.unit} of {wildcards.node}"
    shell:
        "copra score --settings {params.settings:q} --threads {threads} --model {input.manifest}"
        " --data {input.train} --output {output.scores} > {log} 2>&1"
