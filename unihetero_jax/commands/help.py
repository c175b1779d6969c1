"""What ``unihetero VERB --help`` tells beside its arguments: examples, and what the exit codes mean."""

TRAIN = """\
overrides:
  --config.SECTION.KEY=VALUE changes one value of the config file, and may be given once for each key. The value must
  be of the key's type: an integer (10), a number (0.3, 1e-4), true or false, a word from a list, or text. A wrong key
  or value is refused before anything starts, with the nearest valid name.

  --config.data.root is where the dataset is. It is empty by default, which means WORKDIR/data.

examples:
  unihetero train --config=configs/quickstart.py --workdir=runs/watch
  unihetero train --config=configs/quickstart.py --workdir=runs/short --config.train.steps=20
  unihetero train --config=configs/quickstart.py --workdir=runs/vqa \\
      --config.data.mode=understanding --config.losses.semantic.weight=0 --config.logging.tensorboard=false

The same command again continues from the newest checkpoint in WORKDIR.

exit codes:
  0   the run is complete
  2   the command line, the config or a file is wrong; one line on stderr says what
  75  saved when asked to stop (SIGTERM), hung (train.hang_timeout), or another host is lost: run the same command again
"""

TOWERS = """\
examples:
  unihetero towers train vq16 --config=configs/towers/vq16.py --workdir=runs/vq16
  unihetero towers train kl16 --config=configs/towers/kl16.py --workdir=runs/kl16 --config.train.steps=100
  unihetero towers train siglip --config=configs/towers/siglip.py --workdir=runs/siglip
  unihetero towers train reader --config=configs/towers/reader.py --workdir=runs/reader

  unihetero towers features --config=configs/unihetero_small.py --config.data.root=data/watch64 --out=features/watch64

Overrides, continuing and exit codes are those of `unihetero train`. At the end of a training WORKDIR has the tower
(tower.json and params), what it is worth (eval.json) and, of vq16 and kl16, reconstructions.png: truth above,
reconstruction below. `features` makes DIR whole or not at all.
"""

BENCH = """\
Measures, on the devices that are here: the input pipeline alone (samples/s of each host), the train step on one
synthetic batch, and both together, as in training; with quantiles of the steps' times, tokens/s/device, MFU and memory.
The dataset (config.data.root, or config.data.sources) has to be there. Weights are random, nothing is saved.

examples:
  unihetero bench --config=configs/quickstart.py --config.data.root=data/watch64
  unihetero bench --config=configs/unihetero_1b.py --config.data.root=data/mine --steps=50 --out=bench.json
  python launch/local.py --processes=2 -- bench --config=configs/quickstart.py --config.data.root=data/watch64

exit codes:
  0   done
  2   the command line, the config or a file is wrong; one line on stderr says what
"""

STATUS = """\
Reads the workdir of a run that goes on, or has ended: step, loss, speed, newest checkpoint, and where the time of all
its starts went. `lost` is work that was done again after a crash, `down` the time between two starts.

examples:
  unihetero status --workdir=runs/watch
  unihetero status --workdir=runs/watch --json

exit codes:
  0   done
  2   the command line is wrong, or there is no such run; one line on stderr says what
"""

EVAL = """\
examples:
  unihetero eval --workdir=runs/watch
  unihetero eval --workdir=runs/watch --step=200 --out=step200.json
  unihetero eval --workdir=runs/watch --follow
  unihetero eval --workdir=runs/watch --config.evaluate.reader=runs/reader --config.evaluate.frechet=runs/siglip
  unihetero eval --workdir=runs/watch --config.evaluate.probes=true --config.evaluate.perplexity=notes.txt

exit codes:
  0   the evaluation is complete
  2   the command line is wrong, or there is no such checkpoint; one line on stderr says what
"""

GENERATE = """\
examples:
  unihetero generate --workdir=runs/watch --image=watch.png --prompt="What time does the watch show?"
  unihetero generate --workdir=runs/watch --prompt="a watch that shows 10:08:42" --out=watch.png
  unihetero generate --workdir=runs/watch --prompt="a watch" --out=watch.png --temperature=0.7 --guidance=3 --seed=1

exit codes:
  0   the result is written
  2   the command line is wrong, or there is no such checkpoint; one line on stderr says what
"""

PLAN = """\
Compiles the real train step for chips that need not be here and tells the memory, the work, the traffic and the time
of a step, and what the run that the config describes would cost. --config.SECTION.KEY=VALUE changes the config, as for
train. TPU topologies need `pip install 'unihetero_jax[plan]'`; GPUs are estimated by formula.

examples:
  unihetero plan --config=configs/unihetero_7b.py --topology=v5p:8x8x4
  unihetero plan --config=configs/unihetero_7b.py --topology=v6e:16x16,slices=2 --mesh=slice=2,fsdp=128,tensor=2
  unihetero plan --config=configs/unihetero_7b.py --topology=gpu:h100x64 --search --out=plan.json

exit codes:
  0   the step fits
  2   the command line or the config is wrong; one line on stderr says what
  3   the step does not fit into the chips' memory
"""

DATA = """\
examples:
  unihetero data build smart_watch --out=data/watch
  unihetero data import folder photos --table=photos/captions.csv --out=data/photos
  unihetero data inspect data/watch --grid=grid.png
  unihetero data inspect --config=configs/quickstart.py --config.data.root=data/watch --rows=rows.png

exit codes:
  0   done
  2   the command line or a file is wrong; one line on stderr says what
"""

WEIGHTS = """\
examples:
  unihetero weights import Qwen3-0.6B --out=weights/qwen3
  unihetero weights export --workdir=runs/watch --out=exported
  unihetero weights inspect Qwen3-0.6B

exit codes:
  0   done
  2   the command line or a file is wrong; one line on stderr says what
"""

STUDY = """\
examples:
  unihetero study list mutual_benefit
  unihetero study run mutual_benefit --workdir=runs/studies --only='vq_vq-*' --seeds=3
  unihetero study run all --workdir=runs/studies --data=emoji=data/emoji/folder
  unihetero study status mutual_benefit --workdir=runs/studies
  unihetero study report mutual_benefit --workdir=runs/studies
  unihetero study run my_study.py --workdir=runs/mine
  unihetero study run mutual_benefit --workdir=DIR --seeds=5 --prepare           # a job array by hand; launch/slurm.py
  unihetero study run mutual_benefit --workdir=DIR --seeds=5 --index=$SLURM_ARRAY_TASK_ID         # and gke.py make one
  unihetero study run llava --scale=paper --workdir=DIR --data=instructions=DATA,requests=DATA \
      --weights=clip=WEIGHTS,vq16=WEIGHTS,stage1_clip_clip=RUN,stage1_clip_vq=RUN --dry_run

A run that has a result is not run again; the same command goes on where it was stopped. Several may work in one DIR,
and several studies share one: an arm that two of them have is run once.

exit codes of run:
  0   every run that was asked for is done
  1   the loss of one was not finite; its log is DIR/NAME/arms/ARM/seed-N/log
  2   the command line, the study, DIR or a run's config is wrong; one line on stderr, or in its log, says what
  75  stopped by a signal, saved: run the same command again to go on; above 128: a run's process was killed
of several the highest.
"""
