package pseudoword

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"image/png"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	generationv1 "github.com/pseudoword/pseudoword/clients/go/gen/pseudoword/generation/v1"
	trainerv1 "github.com/pseudoword/pseudoword/clients/go/gen/pseudoword/trainer/v1"
)

const (
	startTime = 3 * time.Minute
	drainTime = time.Minute
)

// TestMainJob learns a word from four pictures and draws it, against real servers. $PSEUDOWORD_PYTHON is a Python
// interpreter with the servers installed; `make test` sets it. Without it the test is skipped, and fails in CI.
func TestMainJob(t *testing.T) {
	python := os.Getenv("PSEUDOWORD_PYTHON")
	if python == "" {
		const missing = "PSEUDOWORD_PYTHON is not set: run `make test`, which sets it to the interpreter that starts the servers"
		if os.Getenv("CI") != "" {
			t.Fatal(missing)
		}
		t.Skip(missing)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	data := t.TempDir()
	registry := startServer(t, python, root, data, "registry", "--store.address", filepath.Join(data, "store"))
	trainer := startServer(
		t, python, root, data, "trainer",
		"--store.address", filepath.Join(data, "jobs"), "--registry.address", registry,
	)
	generation := startServer(
		t, python, root, data, "service",
		"--store.address", filepath.Join(data, "batches"), "--registry.address", registry,
	)

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	client, err := New(Options{Registry: registry, Trainer: trainer, Generation: generation})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()

	var pictures [][]byte
	for number := range 4 {
		picture, err := os.ReadFile(filepath.Join(root, "examples", "rex", fmt.Sprintf("%d.png", number+1)))
		if err != nil {
			t.Fatal(err)
		}
		pictures = append(pictures, picture)
	}
	steps := 0
	version, err := client.Learn(ctx, "rex", pictures, LearnOptions{
		Start:   "toy",
		OnEvent: func(event *trainerv1.JobEvent) { steps = max(steps, int(event.GetProgress().GetStep())) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if version.GetName() != "tenants/default/concepts/rex/versions/1" || steps == 0 {
		t.Errorf("learned %s with progress up to step %d", version.GetName(), steps)
	}
	if pictures := version.GetProvenance().GetPictureDigests(); len(pictures) != 4 {
		t.Errorf("digests of the training pictures: %v", pictures)
	}

	model, err := client.Generation.GetModel(ctx, &generationv1.GetModelRequest{})
	if err != nil {
		t.Fatal(err)
	}
	prompt := "a photo of <rex> on the beach"
	options := DrawOptions{Seed: 7, Steps: 8, Exact: true}
	drawn, err := client.Draw(ctx, prompt, options)
	if err != nil {
		t.Fatal(err)
	}
	if len(drawn) != 1 {
		t.Fatalf("%d pictures", len(drawn))
	}
	decoded, err := png.Decode(bytes.NewReader(drawn[0].Data))
	if err != nil {
		t.Fatal(err)
	}
	if size := decoded.Bounds().Size(); size.X != int(model.GetResolution()) || size.Y != size.X {
		t.Errorf("a picture of %v; the model's resolution is %d", size, model.GetResolution())
	}
	if again, err := client.Draw(ctx, prompt, options); err != nil || !bytes.Equal(again[0].Data, drawn[0].Data) {
		t.Errorf("the same request gave other bytes: %v", err)
	}
	var record generationv1.PictureRecord
	if err := protojson.Unmarshal([]byte(textChunk(t, drawn[0].Data, "pseudoword")), &record); err != nil {
		t.Fatalf("the record inside the picture: %v", err)
	}
	if record.GetSettings().GetPrompt() != prompt || record.GetSettings().GetSeed() != 7 ||
		len(record.GetWords()) != 1 || record.GetWords()[0].GetVersion() != version.GetName() ||
		record.GetWords()[0].GetTensorsDigest() != version.GetTensorsDigest() {
		t.Errorf("the record inside the picture: %v", &record)
	}

	if _, err := client.SetAlias(ctx, "rex", "production", version.GetNumber(), AliasOptions{Reason: "first"}); err != nil {
		t.Fatal(err)
	}
	if resolved, err := client.Resolve(ctx, "rex@production"); err != nil || resolved.GetNumber() != 1 {
		t.Errorf("rex@production: %v, %v", resolved.GetName(), err)
	}
	if versions, err := client.Versions(ctx, "rex"); err != nil || len(versions) != 1 {
		t.Errorf("versions: %v, %v", versions, err)
	}

	batch, err := client.CreateBatch(ctx, &generationv1.Batch{
		Settings: &generationv1.PictureSettings{Prompt: prompt, Steps: proto.Int32(4)}, Seeds: 3,
	})
	if err != nil {
		t.Fatal(err)
	}
	if batch, err = client.AwaitBatch(ctx, batch.GetName(), nil); err != nil || batch.GetDone() != 3 {
		t.Fatalf("a batch: %v, %v", batch, err)
	}
	manifest, err := os.ReadFile(strings.TrimPrefix(batch.GetManifestUri(), "file://"))
	if err != nil || bytes.Count(manifest, []byte("\n")) != 3 {
		t.Errorf("the manifest of a batch: %q, %v", manifest, err)
	}
	if batches, err := client.Batches(ctx, "state = SUCCEEDED"); err != nil || len(batches) != 1 {
		t.Errorf("batches: %v, %v", batches, err)
	}

	var failure *Error
	_, err = client.Draw(ctx, "a photo of <nobody>", DrawOptions{Steps: 2})
	if !errors.As(err, &failure) || failure.Code != codes.InvalidArgument || failure.Reason != "WORD_UNKNOWN" ||
		!strings.Contains(failure.Error(), "nobody") {
		t.Errorf("an unknown word: %#v", err)
	}
}

// startServer runs `python -m MODULE` until the test ends. It returns the server's address once the server is ready.
func startServer(t *testing.T, python, root, data, module string, arguments ...string) string {
	t.Helper()
	addressFile := filepath.Join(data, module+".json")
	arguments = append([]string{"-m", module, "--server.address-file", addressFile, "--server.listen", "127.0.0.1:0"}, arguments...)
	log, err := os.Create(filepath.Join(data, module+".log"))
	if err != nil {
		t.Fatal(err)
	}
	logged := func() string {
		text, _ := os.ReadFile(log.Name())
		return string(text)
	}
	command := exec.Command(python, arguments...)
	command.Dir, command.Stdout, command.Stderr = root, log, log
	// Settings of the user's own servers must not apply to these.
	for _, entry := range os.Environ() {
		if !strings.HasPrefix(entry, "PSEUDOWORD_") {
			command.Env = append(command.Env, entry)
		}
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	t.Cleanup(func() {
		defer log.Close()
		_ = command.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("%s ended with %v:\n%s", module, err, logged())
			}
		case <-time.After(drainTime):
			_ = command.Process.Kill()
			<-ended
			t.Errorf("%s did not end on SIGTERM:\n%s", module, logged())
		}
	})
	deadline := time.Now().Add(startTime)
	for time.Now().Before(deadline) {
		if text, err := os.ReadFile(addressFile); err == nil {
			var addresses struct{ Grpc string }
			if err := json.Unmarshal(text, &addresses); err != nil {
				t.Fatal(err)
			}
			return addresses.Grpc
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("%s did not start: %v\n%s", module, err, logged())
		case <-time.After(50 * time.Millisecond):
		}
	}
	t.Fatalf("%s was not ready in time:\n%s", module, logged())
	return ""
}

// textChunk returns the text of a PNG's tEXt chunk with a keyword.
func textChunk(t *testing.T, file []byte, keyword string) string {
	t.Helper()
	reader := bytes.NewReader(file[8:])
	for {
		var size uint32
		if err := binary.Read(reader, binary.BigEndian, &size); err != nil {
			t.Fatalf("no text %q in the picture", keyword)
		}
		chunk := make([]byte, 4+size+4)
		if _, err := io.ReadFull(reader, chunk); err != nil {
			t.Fatal(err)
		}
		key, text, found := strings.Cut(string(chunk[4:4+size]), "\x00")
		if string(chunk[:4]) == "tEXt" && found && key == keyword {
			return text
		}
	}
}
