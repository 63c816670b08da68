// Results as rows: medians, ratios, and which goals are met.
import { mebibytes, milliseconds } from './table.js';
import { tools, type Tool } from './measure.js';
import { spreadOf, type Spread } from './statistics.js';
import { metrics, type Goal, type Metric, type Workload } from './workloads.js';
import type { WorkloadResult } from './pairs.js';

export interface Measured {
  readonly workload: Workload;
  /** Where the images were. */
  readonly images: 'tmpfs' | 'disk';
  readonly result: WorkloadResult;
}

export interface Row {
  readonly metric: Metric;
  readonly values: Partial<Record<Tool, Spread>>;
  /** Our median by the peer's. */
  readonly ratio: number | undefined;
  readonly goals: readonly { readonly goal: Goal; readonly met: boolean | undefined }[];
}

export const metricNames = Object.keys(metrics) as readonly Metric[];

export function rowsOf({ workload, result, images }: Measured): Row[] {
  return metricNames.flatMap((metric) => {
    const values: Partial<Record<Tool, Spread>> = {};
    for (const tool of tools) {
      const spread = spreadOf((result[tool]?.samples ?? []).flatMap((sample) => sample[metric] ?? []));
      if (spread !== undefined) values[tool] = spread;
    }
    const ours = values.stasis?.median;
    const theirs = values.criu?.median;
    if (ours === undefined && theirs === undefined) return [];
    const ratio = ours === undefined || theirs === undefined || theirs === 0 ? undefined : ours / theirs;
    const goals = (images === 'tmpfs' ? (workload.goals ?? []) : [])
      .filter((goal) => goal.metric === metric)
      .map((goal) => ({ goal, met: isMet(goal, ours, ratio) }));
    return [{ metric, values, ratio, goals }];
  });
}

function isMet(goal: Goal, ours: number | undefined, ratio: number | undefined): boolean | undefined {
  if (goal.most !== undefined) return ours === undefined ? undefined : ours <= goal.most;
  return ratio === undefined || goal.ratio === undefined ? undefined : ratio <= goal.ratio;
}

export function goalText(goal: Goal): string {
  return goal.most !== undefined ? `at most ${formatted(goal.metric, goal.most)}` : `at most ${goal.ratio}x`;
}

export function formatted(metric: Metric, value: number): string {
  return metric.endsWith('Bytes') ? mebibytes(value) : milliseconds(value);
}

export function spreadText(metric: Metric, spread: Spread | undefined): string {
  if (spread === undefined) return '-';
  return `${formatted(metric, spread.median)} (${formatted(metric, spread.low)} to ${formatted(metric, spread.high)})`;
}

function placeText({ workload, images }: Measured): string {
  if (workload.kind === 'podman') return 'where podman keeps them, on the disk';
  return images === 'tmpfs' ? 'on tmpfs' : 'on the disk';
}

/** Lines for the terminal. */
export function textRows(measured: Measured): string[][] {
  const rows = rowsOf(measured);
  const present = tools.filter((tool) => measured.result[tool] !== undefined);
  return [
    [`${measured.workload.name}, images ${placeText(measured)}`, ...present, 'ratio', 'wanted'],
    ...rows.map((row) => [
      `  ${metrics[row.metric]}`,
      ...present.map((tool) => spreadText(row.metric, row.values[tool])),
      row.ratio === undefined ? '-' : row.ratio.toFixed(2),
      row.goals
        .map(({ goal, met }) => `${goalText(goal)}: ${met === undefined ? 'not known' : met ? 'met' : 'NOT MET'}`)
        .join('; '),
    ]),
  ];
}

export function failuresOf({ result }: Measured): string[] {
  return tools.flatMap((tool) => {
    const found = result[tool];
    return found !== undefined && 'failure' in found ? [`  ${tool} failed: ${found.failure}`] : [];
  });
}

export interface CurvePoint {
  readonly at: number;
  readonly values: Partial<Record<Tool, Spread>>;
}

export interface Curve {
  /** What there is more and more of. */
  readonly name: string;
  readonly metric: Metric;
  /** By number. */
  readonly points: readonly CurvePoint[];
}

/** How what a checkpoint and a restore take grows, where more than one size was measured. */
export function curvesOf(all: readonly Measured[]): Curve[] {
  const onTmpfs = all.filter(({ images }) => images === 'tmpfs');
  const names = [...new Set(onTmpfs.flatMap(({ workload }) => workload.curve?.name ?? []))];
  return names.flatMap((name) =>
    (['frozenMs', 'engineMs'] as const).flatMap((metric) => {
      const points = onTmpfs.flatMap((measured) => {
        const { curve } = measured.workload;
        const row = rowsOf(measured).find((one) => one.metric === metric);
        return curve?.name === name && row !== undefined ? [{ at: curve.at, values: row.values }] : [];
      });
      return points.length < 2 ? [] : [{ name, metric, points: points.sort((one, other) => one.at - other.at) }];
    }),
  );
}

/** Lines for the terminal: a cost that grows with the number has the same quotient everywhere, but for what is there from the start. */
export function curveRows({ name, metric, points }: Curve): string[][] {
  const shown = ['stasis', 'criu'] as const;
  return [
    [`${metrics[metric]}, by number of ${name}`, ...shown.flatMap((tool) => [tool, 'each'])],
    ...points.map(({ at, values }) => [
      `  ${at}`,
      ...shown.flatMap((tool) => {
        const median = values[tool]?.median;
        return median === undefined ? ['-', '-'] : [milliseconds(median), `${((median / at) * 1000).toFixed(1)} us`];
      }),
    ]),
  ];
}
