import type { ComfyApp, DOMWidget, DOMWidgetOptions } from "@comfyorg/comfyui-frontend-types";

export declare const app: ComfyApp;

/** What frontends add to LiteGraph's node, and this pack. */
interface Additions {
  comfyClass: string;
  addDOMWidget<T extends HTMLElement, V extends object | string>(
    name: string,
    type: string,
    element: T,
    options: DOMWidgetOptions<V> & { margin?: number; serialize?: boolean },
  ): DOMWidget<T, V> & { serialize?: boolean };
  /** What the node said last, where the page keeps no outputs. */
  diffloraOutput?: Record<string, any>;
}

export type Node = NonNullable<ReturnType<ComfyApp["graph"]["getNodeById"]>> & Additions;
