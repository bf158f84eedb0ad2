/* The search of a page that was opened from the disk: browsers start no worker there, so its program runs in a hidden
   frame. On a server this file does nothing. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = []; // messages that came before the program was loaded
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.addEventListener("load", () => this.start(frame.contentWindow, url), { once: true });
      document.body.append(frame);
    }

    start(inner, url) {
      inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data: structuredClone(data) }));
      const program = inner.document.createElement("script");
      program.src = url;
      program.addEventListener("load", () => {
        this.inner = inner;
        this.waiting.splice(0).forEach((data) => this.postMessage(data));
      });
      inner.document.body.append(program);
    }

    postMessage(data) {
      if (this.inner) {
        this.inner.dispatchEvent(new this.inner.MessageEvent("message", { data: structuredClone(data) }));
      } else {
        this.waiting.push(data);
      }
    }
  };
}
