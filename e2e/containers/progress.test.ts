// What a checkpoint and a restore tell of themselves: nothing unasked, lines of
// JSON when a program asks, the time of each phase in the result and beside the images.
import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Container } from '../support/container.js';
import { useTestBed } from '../support/test-bed.js';

interface Told {
  readonly phase: string;
  readonly doneBytes: number;
  readonly totalBytes: number;
  readonly bytesPerSecond: number;
  readonly secondsLeft: number | null;
}

interface Timing {
  readonly phase: string;
  readonly startNs: string;
  readonly endNs: string;
}

const kBallastMib = 512;

describe('progress and timings', () => {
  const bed = useTestBed();

  it('tells programs how far it is, and nobody who has not asked', async () => {
    // Of what is over in 0.1 s nothing may be told.
    const { container, images } = await start(kBallastMib);
    const quiet = await container.must(container.checkpointArgs(images, ['--leave-running']));
    assert.equal(quiet.stderr, '');
    const { stderr } = await container.must(
      container.checkpointArgs(images, ['--leave-running', '--progress', 'json']),
    );
    const told = stderr
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as Told);
    const last = told.filter(({ phase }) => phase === 'write pages').at(-1);
    assert.ok(last !== undefined && last.doneBytes > 0 && last.totalBytes >= kBallastMib << 20, stderr);
    for (const { doneBytes, totalBytes, bytesPerSecond, secondsLeft } of told) {
      assert.ok(doneBytes <= totalBytes && bytesPerSecond >= 0 && (secondsLeft ?? 0) >= 0, stderr);
    }
    const wrong = await container.stasis(container.checkpointArgs(images, ['--progress', 'xml']));
    assert.equal(wrong.exitCode, 1);
    assert.match(wrong.stderr, /only json is built/);
  });

  it('says of each phase how long it took', async () => {
    const { container, images } = await start();
    const { stdout } = await container.must(container.checkpointArgs(images, ['--json']));
    expectPhases((JSON.parse(stdout) as { timings: Timing[] }).timings, ['freeze', 'encode', 'commit images', 'kill']);

    const shown = (await container.must(['inspect', images])).stdout;
    assert.match(shown, /^time\n(.*\n)* {2}total .* ms {2}█{40}$/m);
    const described = JSON.parse((await container.must(['inspect', '--json', images])).stdout) as {
      timeline: { phase: string; durationUs: number }[];
    };
    assert.ok(described.timeline.some(({ phase, durationUs }) => phase === 'total' && durationUs > 0));
    writeFileSync(join(images, 'stasis-timings.json'), '{"version":1,"phases":[{}]}');
    assert.doesNotMatch((await container.must(['inspect', images])).stdout, /^time$/m);

    await container.restore('images', ['--json']);
    const answer = /^\{\n[^]*?^\}$/m.exec(readFileSync(container.outputFile, 'utf8'))?.[0] ?? '';
    const restored = JSON.parse(answer) as { initHostPid: number; timings: Timing[] };
    assert.equal(restored.initHostPid, await container.initPid());
    expectPhases(restored.timings, ['read', 'check', 'compile', 'clone', 'fill', 'release', 'publish']);
  });

  /** With a ballast: a program that has filled so much memory, and waits. */
  async function start(ballastMib?: number): Promise<{ container: Container; images: string }> {
    const container = await bed.start(
      ballastMib === undefined
        ? { args: ['sh', '-c', 'while :; do sleep 1; done'] }
        : { args: ['/targets/memory_while_filled', String(ballastMib)], targets: ['memory_while_filled'] },
    );
    if (ballastMib !== undefined) await container.waitForOutput(/READY|FAIL.*/);
    const images = container.imagesDirectory('images');
    mkdirSync(`${images}.work`, { recursive: true });
    return { container, images };
  }

  function expectPhases(timings: readonly Timing[], wanted: readonly string[]): void {
    const names = timings.map(({ phase }) => phase);
    for (const phase of wanted) assert.ok(names.includes(phase), `no ${phase} among ${names.join(', ')}`);
    const total = timings.at(-1);
    assert.equal(total?.phase, 'total');
    for (const { phase, startNs, endNs } of timings) {
      assert.ok(BigInt(startNs) <= BigInt(endNs), phase);
      assert.ok(BigInt(endNs) <= BigInt(total.endNs), phase);
    }
  }
});
