# Tasks: from files, the Hub or a generator to three Parquet splits.


rule data:
    input:
        lambda wildcards: local(copra.task_files(wildcards.task)),
    output:
        train="<results>/data/{task}/train.parquet",
        valid="<results>/data/{task}/valid.parquet",
        test="<results>/data/{task}/test.parquet",
    log:
        "<logs>/data/{task}.log",
    benchmark:
        "<benchmarks>/data/{task}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        settings=lambda wildcards: copra.data_settings(wildcards.task),
    message:
        "Preparing task {wildcards.task}"
    shell:
        "copra data --settings {params.settings:q} --output {output.train} > {log} 2>&1"
