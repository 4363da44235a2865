# Tasks: from files, the Hub or a generator to three Parquet splits, each a job of its own, so that a change of
# the test set trains nothing again. Readers of a split depend on the small file beside it, which holds its
# checksum; the table itself is ancient(), so that its time does not matter.


rule data:
    input:
        files=lambda wildcards: here(*copra.experiment.tasks[wildcards.task].files().values()),
    output:
        summary="<results>/data/{task}/{split}.json",
        table="<results>/data/{task}/{split}.parquet",
    log:
        "<logs>/data/{task}/{split}.log",
    benchmark:
        "<benchmarks>/data/{task}/{split}.tsv"
    group:
        submissions.group("data/{task}/{split}")
    threads: 1
    resources:
        **SHARED,
        mem_mb=2000,
        runtime=submissions.minutes("data/{task}/{split}", 30),
    params:
        settings=lambda wildcards: copra.data_settings(**wildcards),
        # Functions of the output make nothing run again.
        task=lambda wildcards, output: copra.task_settings(wildcards.task),
    message:
        "Preparing the {wildcards.split} split of task {wildcards.task}"
    shell:
        "copra data --settings {params.settings:q} --task {params.task:q}"
        " --output {output.table} > {log} 2>&1"
