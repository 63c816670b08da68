import assert from 'node:assert/strict';
import { compileOptions, encodeOptions, MemoryImages, readCapture, somePages } from '../recorded.js';
import { compilePlan } from '../compile.js';
import { decodeImages } from '../decode.js';
import { encodePageMaps } from '../encode.js';
import { ImageSetReader, type ImageSource } from '../image-set.js';
import { intersectRuns, parentPages } from './page-map.js';

const kPage = 4096n;
const run = (page: number, pageCount: number): { address: bigint; pageCount: bigint } => ({
  address: BigInt(page) * kPage,
  pageCount: BigInt(pageCount),
});

describe('page maps', () => {
  it('intersect', () => {
    assert.deepEqual(intersectRuns([run(0, 4), run(10, 10)], [run(2, 9), run(12, 1), run(18, 9)]), [
      run(2, 2),
      run(10, 1),
      run(12, 1),
      run(18, 2),
    ]);
    assert.deepEqual(intersectRuns([run(0, 4)], []), []);
    assert.deepEqual(intersectRuns([run(0, 4)], [run(4, 1)]), []);
  });

  describe('that leave pages to a parent', () => {
    const capture = readCapture('credentials');
    const all = somePages(capture);
    const pagesOf = (source: ImageSource, parent: ImageSource | undefined): string[] => {
      const images: ImageSource = Object.assign(Object.create(source) as ImageSource, {
        list: () => source.list(),
        read: (name: string) => source.read(name),
        sizeBytes: (name: string) => source.sizeBytes(name),
        parent: () => parent,
      });
      const { plan, objections } = compilePlan(decodeImages(images), { ...compileOptions, shellJob: true });
      if (objections.length > 0) return objections.map(({ code, message }) => `${code} ${message}`);
      return plan.tasks[0]!.fills.map(
        ({ address, pageFile, fileOffsetBytes }) =>
          `0x${address.toString(16)} ${plan.pageFiles[pageFile]}+${fileOffsetBytes}`,
      );
    };
    /** All pages of the first task but the first two are left to the parent. */
    const child = (known: ImageSource): MemoryImages => {
      const [first, ...others] = all.tasks;
      const pages = {
        ...all,
        tasks: [{ ...first!, runs: first!.runs.slice(0, 2), unchangedRuns: first!.runs.slice(2) }, ...others],
      };
      const images = new MemoryImages(capture, pages, encodeOptions);
      for (const file of encodePageMaps(capture, pages, known)) images.put(file);
      return images;
    };

    it('are filled from both', () => {
      const parent = new MemoryImages(capture, all, encodeOptions);
      const whole = pagesOf(parent, undefined);
      assert.ok(whole.length > 2 && whole.every((fill) => / pages-\d+\.img\+/.test(fill)), whole.join('\n'));
      const split = pagesOf(child(parent), parent);
      assert.deepEqual(
        split.map((fill) => fill.split(' ')[0]),
        whole.map((fill) => fill.split(' ')[0]),
      );
      assert.deepEqual(
        split.slice(2),
        whole.slice(2).map((fill) => fill.replace(' ', ' parent/')),
      );
      assert.deepEqual(split.slice(0, 2), whole.slice(0, 2));
    });

    it('are found again for a comparison, in whichever of both they lie', () => {
      const parent = new MemoryImages(capture, all, encodeOptions);
      const { runs } = all.tasks[0]!;
      const known = (source: ImageSource): string[] => {
        const { files, tasks, obstacle } = parentPages(new ImageSetReader(source));
        assert.equal(obstacle, undefined);
        return tasks[0]!.runs.flatMap(({ address, pageCount, file, offsetBytes }) =>
          Array.from({ length: Number(pageCount) }, (_, page) => {
            const from = BigInt(page) * kPage;
            return `0x${(address + from).toString(16)} ${files[file]}+${offsetBytes + from}`;
          }),
        );
      };
      const whole = runs.map(({ address }, index) => `0x${address.toString(16)} pages-1.img+${index * Number(kPage)}`);
      assert.deepEqual(known(parent), whole);
      const split: ImageSource = Object.assign(Object.create(child(parent)) as ImageSource, {
        list: () => parent.list().filter((name) => name.startsWith('pagemap-')),
        read: (name: string) => child(parent).read(name),
        sizeBytes: (name: string) => child(parent).sizeBytes(name),
        parent: () => parent,
      });
      assert.deepEqual(known(split), [
        ...whole.slice(0, 2),
        ...whole.slice(2).map((page) => page.replace(' ', ' parent/')),
      ]);
    });

    it('are not compared with what the parent has not, and it is said why', () => {
      const parent = new MemoryImages(capture, all, encodeOptions);
      const without: ImageSource = Object.assign(Object.create(parent) as ImageSource, {
        list: () => parent.list(),
        read: (name: string) => parent.read(name),
        sizeBytes: (name: string) => (name === 'pages-1.img' ? undefined : parent.sizeBytes(name)),
      });
      const { files, tasks, obstacle } = parentPages(new ImageSetReader(without));
      assert.deepEqual([files, tasks, obstacle], [[], [], '"pages-1.img" is missing']);
    });

    it('are refused when the parent is not there or lacks a page', () => {
      const parent = new MemoryImages(capture, all, encodeOptions);
      assert.match(
        pagesOf(child(parent), undefined).join('\n'),
        /IMAGE_MISSING.*to its parent checkpoint, which is not there/,
      );
      const [first, ...others] = all.tasks;
      const less = new MemoryImages(
        capture,
        { ...all, tasks: [{ ...first!, runs: first!.runs.slice(0, -1) }, ...others] },
        encodeOptions,
      );
      assert.match(pagesOf(child(parent), less).join('\n'), /IMAGE_MISSING.*to its parent checkpoint, which lacks it/);
    });

    it('leave out what the parent had no content for', () => {
      const [first, ...others] = all.tasks;
      const less = new MemoryImages(
        capture,
        { ...all, tasks: [{ ...first!, runs: first!.runs.slice(0, -1) }, ...others] },
        encodeOptions,
      );
      assert.equal(pagesOf(child(less), less).length, first!.runs.length - 1);
    });
  });
});
