// Looking at images without restoring them: the plan that a restore would run,
// and the decoded model for whoever describes it.

import { compilePlan, decodeImages, type CompiledPlan, type ImageModel } from './engine/index.js';
import { checkPolicy, missingSources, readCgroupLayout } from './container/index.js';
import type { StasisError } from './errors/index.js';
import { readBundle } from './bundle.js';
import { collectClaims, emptyDirectoryKeys } from './image-claims.js';
import { ImageInput } from './image-input.js';
import { inheritFromBundle } from './inheritance.js';
import { kernelFacts } from './restore-steps.js';
import { placeOfCgroup } from './state-files.js';
import { kEmptyDirectoryName } from '../oci-spec/crun-status.js';

export function readImages<Result>(imagePath: string, use: (images: ImageInput, model: ImageModel) => Result): Result {
  using images = new ImageInput(imagePath);
  return use(images, decodeImages(images));
}

/** With a bundle, as restoreContainer would compile it; without, as for a bare process tree in an empty place. */
export function planContainer(request: {
  readonly imagePath: string;
  readonly bundle: string | undefined;
}): CompiledPlan {
  return readImages(request.imagePath, (images, model): CompiledPlan => {
    const kernel = kernelFacts();
    if (request.bundle === undefined) {
      return compilePlan(model, {
        rootfs: '/rootfs',
        yardDirectory: '/yard',
        externalMounts: new EveryKey(),
        inherited: new EveryDescriptor(),
        joinNamespaces: new Map(),
        emptyNetNamespace: true,
        shellJob: true,
        tcp: 'established',
        kernel,
      });
    }
    const bundle = readBundle(request.bundle);
    const refused: readonly StasisError[] = [
      ...checkPolicy(collectClaims(model), bundle.spec),
      ...missingSources(bundle.spec, bundle.directory),
    ];
    // Nothing is sent: any descriptor stands for whoever would take the terminal.
    const consoleFd = bundle.spec.process?.terminal === true ? 0 : undefined;
    using inheritance = inheritFromBundle({
      bundle,
      images,
      layout: readCgroupLayout(),
      place: placeOfCgroup('runc', bundle, 'plan', undefined),
      emptyDirectories: new Map(emptyDirectoryKeys(model).map((key) => [key, `/${kEmptyDirectoryName}`])),
      consoleFd,
      lazyPages: false,
    });
    const compiled = compilePlan(model, {
      ...inheritance.compileOptions,
      rootfs: bundle.rootfs,
      yardDirectory: '/yard',
      emptyNetNamespace: true,
      shellJob: true,
      tcp: 'established',
      kernel,
    });
    return { ...compiled, objections: [...refused, ...compiled.objections] };
  });
}

/** Without a bundle nobody says where external mounts come from: the key stands for the path. */
class EveryKey extends Map<string, string> {
  override has(): boolean {
    return true;
  }
  override get(key: string): string {
    return key;
  }
}

/** Any external name gets a descriptor of its own. */
class EveryDescriptor extends Map<string, number> {
  override get(name: string): number {
    const known = super.get(name);
    if (known !== undefined) return known;
    this.set(name, 10 + this.size);
    return super.get(name)!;
  }
}
