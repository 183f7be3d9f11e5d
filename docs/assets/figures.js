// Figures of the gallery: each is drawn when it comes into view, as wide as the page, or scrolls where that is too narrow.
(function () {
  const LEAST = 0.62; // below this a label is too small to be read
  function fit(box, frame, plot, width, height) {
    const scale = Math.max(LEAST, Math.min(1, box.clientWidth / width));
    plot.style.transform = `scale(${scale})`;
    frame.style.width = `${Math.floor(width * scale)}px`;
    frame.style.height = `${Math.ceil(height * scale)}px`;
  }
  function draw(box) {
    const drawn = JSON.parse(box.querySelector("script").textContent);
    const plot = document.createElement("div");
    const width = drawn.layout.width || 1080;
    const height = drawn.layout.height || 450;
    const frame = document.createElement("div");
    plot.className = "plot";
    frame.className = "frame";
    frame.append(plot);
    box.querySelectorAll(".waits").forEach((text) => text.remove());
    box.append(frame);
    window.Plotly.newPlot(plot, drawn.data, { ...drawn.layout, width, height }, { displaylogo: false, displayModeBar: false })
      .then(() => fit(box, frame, plot, width, height));
    window.addEventListener("resize", () => fit(box, frame, plot, width, height));
  }
  function start() {
    const boxes = [...document.querySelectorAll(".figure")];
    if (!boxes.length) return;
    const script = document.createElement("script");
    script.src = boxes[0].dataset.plotly;
    script.onload = () => {
      const seen = new IntersectionObserver((entries) => {
        for (const entry of entries) {
          if (!entry.isIntersecting) continue;
          seen.unobserve(entry.target);
          draw(entry.target);
        }
      }, { rootMargin: "400px" });
      boxes.forEach((box) => seen.observe(box));
    };
    document.head.append(script);
  }
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
