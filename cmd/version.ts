// What --version prints: the lines that runc prints, which managers store verbatim.

// Set by the bundler; the compiled sources run without.
declare const __STASIS_VERSION__: string | undefined;
declare const __STASIS_COMMIT__: string | undefined;

export const stasisVersion = typeof __STASIS_VERSION__ === 'string' ? __STASIS_VERSION__ : '0.0.0-development';
const commit = typeof __STASIS_COMMIT__ === 'string' ? __STASIS_COMMIT__ : 'unknown';
/** Of the OCI runtime specification. */
export const specVersion = '1.0.2';

/**
 * `base`: what the base runtime prints, undefined if there is none. It makes containers, so the specification is its;
 * dockerd takes every line with the word "version" for the first one: only that one may have it.
 */
export function versionText(base: string | undefined): string {
  const [, name, version] = /^(\S+) version (\S+)/m.exec(base ?? '') ?? [];
  const spec = /^spec: (\S+)/m.exec(base ?? '')?.[1] ?? specVersion;
  const lines = [`stasis version ${stasisVersion}`, `commit: ${commit}`, `spec: ${spec}`];
  if (name !== undefined) lines.push(`base: ${name} ${version}`);
  return [...lines, `node: ${process.version}`, ''].join('\n');
}

/** What `features` adds to the annotations of the base runtime. */
export function featureAnnotations(): Readonly<Record<string, string>> {
  return {
    'org.stasis.version': stasisVersion,
    'org.stasis.commit': commit,
    'org.stasis.checkpoint.enabled': 'true',
    'org.stasis.restore.enabled': 'true',
    'org.stasis.images': 'criu',
  };
}
