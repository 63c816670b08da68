// One page to look at: charts and the whole table, without anything to load.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { repository } from '../../e2e/support/paths.js';
import { limitCells, limitRows, limitTitle, type Limits } from './limits.js';
import { curvesOf, failuresOf, goalText, rowsOf, spreadText, type Measured } from './report.js';
import { tools } from './measure.js';
import { metrics, type Metric } from './workloads.js';

export interface Machine {
  readonly kernel: string;
  readonly processor: string;
  readonly processors: number;
  readonly memory: string;
  readonly date: string;
  readonly command: string;
  readonly versions: Readonly<Record<string, string>>;
}

const charted: readonly Metric[] = [
  ...(['frozenMs', 'gapMs', 'engineMs', 'liveMs', 'checkpointMs', 'restoreMs', 'firstTickMs', 'engineTickMs'] as const),
  ...(['extraBytes', 'imageBytes'] as const),
];

export function htmlPage(all: readonly (Measured & { readonly limits: Limits })[], machine: Machine): string {
  const library = readFileSync(join(repository, 'node_modules/chart.js/dist/chart.umd.min.js'), 'utf8');
  const data = JSON.stringify({ bars: bars(all), curves: curves(all) }).replaceAll('<', '\\u003c');
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>stasis next to CRIU</title>
<style>
  body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem; color: #222; }
  h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
  table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
  th, td { text-align: left; padding: 3px 10px 3px 0; border-bottom: 1px solid #ddd; vertical-align: top; }
  tr.workload th { padding-top: 1.2rem; font-size: 14px; border-bottom: 2px solid #888; }
  .met { color: #176f2c; } .missed { color: #b3261e; font-weight: 600; } .failed { color: #b3261e; }
  .chart { position: relative; } .note { color: #555; }
</style>
<h1>stasis next to CRIU</h1>
<p>${escaped(machine.date)}, Linux ${escaped(machine.kernel)}, ${machine.processors} processors (${escaped(machine.processor)}),
${escaped(machine.memory)}. ${escaped(
    Object.entries(machine.versions)
      .map(([name, version]) => `${name}: ${version}`)
      .join('; '),
  )}.<br>
Made by <code>${escaped(machine.command)}</code>: both tools alternate, after a warm-up; medians with quartiles.</p>
<p class="note">All scales are logarithmic, and each begins where its values do: compare the numbers, not the lengths. Less is better.</p>
<div id="bars"></div>
<div id="curves"></div>
<h2>All numbers</h2>
<table>
${all.map(tableRows).join('\n')}
</table>
<h2>${limitTitle[0]?.toUpperCase()}${limitTitle.slice(1)}</h2>
<p class="note">What no program can beat here, measured right after the rows that it bounds.</p>
<table>
${all.map(limitTableRows).join('\n')}
</table>
<script>${library}</script>
<script>
const data = ${data};
const colours = { 'stasis': '#1f6feb', 'criu': '#b0b7c3', 'criu without its cache': '#d8dce3' };
const isRound = (value) => [1, 2, 5].includes(Number((value / 10 ** Math.floor(Math.log10(value))).toPrecision(3)));
const log = (unit) => ({
  type: 'logarithmic',
  title: { display: true, text: unit },
  ticks: { callback: (value) => (isRound(value) ? value.toLocaleString('en') : '') },
});
Chart.defaults.animation = false;
function add(place, title, height, config) {
  const heading = document.createElement('h2');
  heading.textContent = title;
  const box = document.createElement('div');
  box.className = 'chart';
  box.style.height = height + 'px';
  const canvas = document.createElement('canvas');
  box.append(canvas);
  document.getElementById(place).append(heading, box);
  new Chart(canvas, { ...config, options: { maintainAspectRatio: false, ...config.options } });
}
for (const chart of data.bars) {
  add('bars', chart.title, 80 + chart.labels.length * 34, {
    type: 'bar',
    data: {
      labels: chart.labels,
      datasets: chart.tools.map(({ tool, medians }) => ({ label: tool, data: medians, backgroundColor: colours[tool] })),
    },
    options: { indexAxis: 'y', scales: { x: log(chart.unit) } },
  });
}
for (const curve of data.curves) {
  add('curves', curve.title, 320, {
    type: 'line',
    data: { datasets: curve.lines.map(({ label, tool, points, dashed }) => ({
      label, data: points, borderColor: colours[tool], backgroundColor: colours[tool], borderDash: dashed ? [6, 4] : [],
    })) },
    options: { scales: { x: log(curve.unit), y: log('ms') } },
  });
}
</script>
</html>
`;
}

function label({ workload, images }: Measured): string {
  return images === 'disk' ? `${workload.name} (disk)` : workload.name;
}

function bars(all: readonly Measured[]): unknown[] {
  return charted.flatMap((metric) => {
    const shown = all.filter((measured) => rowsOf(measured).some((row) => row.metric === metric));
    if (shown.length === 0) return [];
    const inMebibytes = metric.endsWith('Bytes');
    const medians = (tool: (typeof tools)[number]): (number | null)[] =>
      shown.map((measured) => {
        const median = rowsOf(measured).find((row) => row.metric === metric)?.values[tool]?.median;
        return median === undefined ? null : inMebibytes ? median / 1024 / 1024 : median;
      });
    return [
      {
        title: metrics[metric],
        unit: inMebibytes ? 'MiB' : 'ms',
        labels: shown.map(label),
        tools: tools
          .map((tool) => ({ tool, medians: medians(tool) }))
          .filter(({ medians: values }) => values.some((value) => value !== null)),
      },
    ];
  });
}

function curves(all: readonly Measured[]): unknown[] {
  const found = curvesOf(all);
  return [...new Set(found.map(({ name }) => name))].map((name) => ({
    title: `${metrics.frozenMs}, and ${metrics.engineMs} (dashed), by number of ${name}`,
    unit: name,
    lines: found
      .filter((curve) => curve.name === name)
      .flatMap(({ metric, points }) =>
        (['stasis', 'criu'] as const).map((tool) => ({
          label: `${tool}: ${metric === 'frozenMs' ? 'frozen' : 'restore'}`,
          tool,
          dashed: metric === 'engineMs',
          points: points.flatMap(({ at, values }) => {
            const y = values[tool]?.median;
            return y === undefined ? [] : [{ x: at, y }];
          }),
        })),
      ),
  }));
}

function tableRows(measured: Measured): string {
  const head = `<tr class="workload"><th>${escaped(label(measured))}</th>${tools.map((tool) => `<th>${escaped(tool)}</th>`).join('')}<th>ratio</th><th>wanted</th></tr>`;
  const rows = rowsOf(measured).map((row) => {
    const goals = row.goals.map(
      ({ goal, met }) =>
        `<span class="${met === true ? 'met' : 'missed'}">${escaped(goalText(goal))}: ${met === true ? 'met' : met === false ? 'not met' : 'not known'}</span>`,
    );
    return `<tr><td>${metrics[row.metric]}</td>${tools.map((tool) => `<td>${measured.result[tool] === undefined ? '' : spreadText(row.metric, row.values[tool])}</td>`).join('')}<td>${row.ratio?.toFixed(2) ?? ''}</td><td>${goals.join('<br>')}</td></tr>`;
  });
  const failures = failuresOf(measured).map(
    (failure) => `<tr><td class="failed" colspan="${tools.length + 3}">${escaped(failure.trim())}</td></tr>`,
  );
  return [head, ...rows, ...failures].join('\n');
}

function limitTableRows(measured: Measured & { readonly limits: Limits }): string {
  const cells = limitCells(limitRows(measured, measured.limits));
  if (cells.length === 0) return '';
  const rows = cells.map((row) => `<tr>${row.map((cell) => `<td>${escaped(cell)}</td>`).join('')}</tr>`);
  return [`<tr class="workload"><th colspan="3">${escaped(label(measured))}</th></tr>`, ...rows].join('\n');
}

function escaped(text: string): string {
  return text.replace(/[&<>"]/g, (letter) => `&#${letter.charCodeAt(0)};`);
}
