package pseudoword

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	generationv1 "github.com/pseudoword/pseudoword/clients/go/gen/pseudoword/generation/v1"
	registryv1 "github.com/pseudoword/pseudoword/clients/go/gen/pseudoword/registry/v1"
	trainerv1 "github.com/pseudoword/pseudoword/clients/go/gen/pseudoword/trainer/v1"
)

func rich(t *testing.T) *status.Status {
	t.Helper()
	found, err := status.New(codes.InvalidArgument, "steps: 0 is too few").WithDetails(
		&errdetails.ErrorInfo{Reason: "WORD_UNKNOWN", Domain: "pseudoword", Metadata: map[string]string{"word": "rex"}},
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
			{Field: "settings.steps", Description: "0 is too few"},
			{Field: "settings.prompt", Description: "is required"},
		}},
		&errdetails.RetryInfo{RetryDelay: durationpb.New(1500 * time.Millisecond)},
	)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestErrorIsReadFromStatusDetails(t *testing.T) {
	original := rich(t)
	var failure *Error
	if !errors.As(FromCall(original.Err()), &failure) {
		t.Fatal("FromCall did not return an *Error")
	}
	if failure.Code != codes.InvalidArgument || failure.Reason != "WORD_UNKNOWN" || failure.Metadata["word"] != "rex" {
		t.Errorf("code, reason, metadata: %v", failure)
	}
	if failure.RetryAfter != 1500*time.Millisecond {
		t.Errorf("retry after %v", failure.RetryAfter)
	}
	want := []Violation{{"settings.steps", "0 is too few"}, {"settings.prompt", "is required"}}
	if len(failure.Violations) != 2 || failure.Violations[0] != want[0] || failure.Violations[1] != want[1] {
		t.Errorf("violations: %v", failure.Violations)
	}
	if text := failure.Error(); text != "steps: 0 is too few; settings.prompt: is required" {
		t.Errorf("text: %q", text)
	}
	if status.Code(failure) != codes.InvalidArgument {
		t.Error("status.Code reads an *Error")
	}
	if stored := FromStatus(original.Proto()); stored.Reason != "WORD_UNKNOWN" {
		t.Errorf("a stored status: %v", stored)
	}
}

func TestFromCallKeepsAnErrorWithoutStatus(t *testing.T) {
	if FromCall(nil) != nil {
		t.Error("nil stays nil")
	}
	if plain := errors.New("plain"); FromCall(plain) != plain {
		t.Error("another error stays as it is")
	}
	if !errors.Is(FromCall(status.Error(codes.DeadlineExceeded, "late")), context.DeadlineExceeded) {
		t.Error("a deadline is the context's too")
	}
}

func TestUploadIsAHeaderAndChunks(t *testing.T) {
	for _, size := range []int{0, 1, chunkBytes, chunkBytes + 1, 3*chunkBytes + 7} {
		picture := bytes.Repeat([]byte("0123456789"), size/10+1)[:size]
		digest := sha256.Sum256(picture)
		var joined []byte
		count := 0
		for message := range uploadMessages("tenants/t", picture) {
			header := message.GetHeader()
			if (count == 0) != (header != nil) {
				t.Fatalf("size %d: message %d: header %v", size, count, header)
			}
			if header != nil && (header.GetSizeBytes() != int64(size) || header.GetParent() != "tenants/t" ||
				header.GetSha256() != hex.EncodeToString(digest[:])) {
				t.Errorf("size %d: header %v", size, header)
			}
			if len(message.GetChunk()) > chunkBytes {
				t.Errorf("size %d: a chunk of %d bytes", size, len(message.GetChunk()))
			}
			joined = append(joined, message.GetChunk()...)
			count++
		}
		if !bytes.Equal(joined, picture) || count != 1+(size+chunkBytes-1)/chunkBytes {
			t.Errorf("size %d was sent as %d bytes in %d messages", size, len(joined), count)
		}
	}
}

func TestTokenNeedsTLSOrLoopback(t *testing.T) {
	_, err := New(Options{Registry: "registry.example:7361", Token: "t"})
	if err == nil || !strings.Contains(err.Error(), "without TLS") {
		t.Errorf("a token without TLS for an address that is not loopback: %v", err)
	}
	_, err = New(Options{CA: filepath.Join(t.TempDir(), "none.pem")})
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file of certificate authorities: %v", err)
	}
}

// flaky is a trainer and a generation service whose streams break before they end.
type flaky struct {
	trainerv1.UnimplementedTrainerServiceServer
	generationv1.UnimplementedGenerationServiceServer
	registryv1.UnimplementedRegistryServiceServer
	watches   int
	filters   []string
	requests  []string
	tokens    []string
	omitDone  bool
	wrongByte bool
	shift     int32
	ends      generationv1.Batch_State
}

func (f *flaky) UploadPicture(stream trainerv1.TrainerService_UploadPictureServer) error {
	return stream.SendAndClose(&trainerv1.Picture{Name: "tenants/default/pictures/p"})
}

func (f *flaky) CreateJob(_ context.Context, request *trainerv1.CreateJobRequest) (*trainerv1.Job, error) {
	f.requests = append(f.requests, request.GetRequestId())
	if len(f.requests) == 1 {
		return nil, status.Error(codes.Unavailable, "not now")
	}
	return &trainerv1.Job{Name: "tenants/default/jobs/j"}, nil
}

func (f *flaky) WatchJob(_ *trainerv1.WatchJobRequest, stream trainerv1.TrainerService_WatchJobServer) error {
	f.watches++
	state := [...]trainerv1.Job_State{
		trainerv1.Job_STATE_QUEUED, trainerv1.Job_STATE_RUNNING, trainerv1.Job_STATE_SUCCEEDED,
	}[f.watches-1]
	job := &trainerv1.Job{State: state, Version: "tenants/default/concepts/rex/versions/1"}
	if err := stream.Send(&trainerv1.WatchJobResponse{
		Event: &trainerv1.JobEvent{Event: &trainerv1.JobEvent_Job{Job: job}},
	}); err != nil {
		return err
	}
	if f.watches == 1 {
		return status.Error(codes.Unavailable, "the server is stopping")
	}
	return nil
}

func (f *flaky) CreateBatch(
	_ context.Context, request *generationv1.CreateBatchRequest,
) (*generationv1.Batch, error) {
	f.requests = append(f.requests, request.GetRequestId())
	if len(f.requests) == 1 {
		return nil, status.Error(codes.Unavailable, "not now")
	}
	return &generationv1.Batch{Name: request.GetParent() + "/batches/b", Total: int64(request.GetBatch().GetSeeds())}, nil
}

func (f *flaky) WatchBatch(
	request *generationv1.WatchBatchRequest, stream generationv1.GenerationService_WatchBatchServer,
) error {
	f.watches++
	state := generationv1.Batch_STATE_ACTIVE
	if f.watches == 3 {
		state = f.ends
	}
	batch := &generationv1.Batch{Name: request.GetName(), State: state, Done: int64(f.watches)}
	if state == generationv1.Batch_STATE_FAILED {
		batch.Error = &spb.Status{Code: int32(codes.InvalidArgument), Message: "no such word"}
	}
	if err := stream.Send(&generationv1.WatchBatchResponse{Batch: batch}); err != nil {
		return err
	}
	if f.watches == 1 {
		return status.Error(codes.Unavailable, "the server is stopping")
	}
	return nil
}

func (f *flaky) ListBatches(
	_ context.Context, request *generationv1.ListBatchesRequest,
) (*generationv1.ListBatchesResponse, error) {
	f.filters = append(f.filters, request.GetFilter()+"/"+request.GetPageToken())
	if request.GetPageToken() == "" {
		return &generationv1.ListBatchesResponse{Batches: []*generationv1.Batch{{Name: "b2"}}, NextPageToken: "next"}, nil
	}
	return &generationv1.ListBatchesResponse{Batches: []*generationv1.Batch{{Name: "b1"}}}, nil
}

func (f *flaky) GetVersion(
	ctx context.Context, request *registryv1.GetVersionRequest,
) (*registryv1.Version, error) {
	given, _ := metadata.FromIncomingContext(ctx)
	f.tokens = append(f.tokens, given.Get("authorization")...)
	return &registryv1.Version{Name: request.GetName(), Number: 1}, nil
}

func (f *flaky) Generate(
	request *generationv1.GenerateRequest, stream generationv1.GenerationService_GenerateServer,
) error {
	for index := range request.GetCount() {
		data := []byte{byte(index), 1, 2}
		digest := sha256.Sum256(data)
		if f.wrongByte {
			data[1] = 7
		}
		for at, part := range [][]byte{data[:1], data[1:]} {
			chunk := &generationv1.PictureChunk{Index: index + f.shift, Data: part}
			if at == 1 {
				chunk.Info = &generationv1.PictureInfo{Sha256: hex.EncodeToString(digest[:])}
			}
			event := &generationv1.GenerateResponse{Event: &generationv1.GenerateResponse_Chunk{Chunk: chunk}}
			if err := stream.Send(event); err != nil {
				return err
			}
		}
	}
	if f.omitDone {
		return nil
	}
	done := &generationv1.Done{Count: request.GetCount()}
	return stream.Send(&generationv1.GenerateResponse{Event: &generationv1.GenerateResponse_Done{Done: done}})
}

func serve(t *testing.T, served *flaky) *Client {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	trainerv1.RegisterTrainerServiceServer(server, served)
	generationv1.RegisterGenerationServiceServer(server, served)
	registryv1.RegisterRegistryServiceServer(server, served)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	address := listener.Addr().String()
	client, err := New(Options{Registry: address, Trainer: address, Generation: address, Token: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func TestLearnSurvivesAnUnavailableServer(t *testing.T) {
	served := &flaky{}
	client := serve(t, served)
	events := 0
	version, err := client.Learn(t.Context(), "rex", [][]byte{{1}}, LearnOptions{
		OnEvent: func(*trainerv1.JobEvent) { events++ },
	})
	if err != nil {
		t.Fatal(err)
	}
	if version.GetNumber() != 1 || served.watches != 3 || events != 3 {
		t.Errorf("version %v after %d watches and %d events", version, served.watches, events)
	}
	if len(served.requests) != 2 || served.requests[0] == "" || served.requests[0] != served.requests[1] {
		t.Errorf("the retried CreateJob has another request id: %q", served.requests)
	}
	if len(served.tokens) != 1 || served.tokens[0] != "Bearer secret" {
		t.Errorf("the token: %q", served.tokens)
	}
}

func TestAwaitBatchSurvivesAnUnavailableServer(t *testing.T) {
	served := &flaky{ends: generationv1.Batch_STATE_SUCCEEDED}
	client := serve(t, served)
	batch, err := client.CreateBatch(t.Context(), &generationv1.Batch{Seeds: 3})
	if err != nil {
		t.Fatal(err)
	}
	if batch.GetName() != "tenants/default/batches/b" || batch.GetTotal() != 3 {
		t.Errorf("created: %v", batch)
	}
	if len(served.requests) != 2 || served.requests[0] == "" || served.requests[0] != served.requests[1] {
		t.Errorf("the retried CreateBatch has another request id: %q", served.requests)
	}
	var progress []int64
	ended, err := client.AwaitBatch(t.Context(), batch.GetName(), func(now *generationv1.Batch) {
		progress = append(progress, now.GetDone())
	})
	if err != nil || ended.GetDone() != 3 || !slices.Equal(progress, []int64{1, 2, 3}) {
		t.Errorf("ended as %v (%v) after %v", ended, err, progress)
	}
	batches, err := client.Batches(t.Context(), "state = ACTIVE")
	if err != nil || len(batches) != 2 || !slices.Equal(served.filters, []string{"state = ACTIVE/", "state = ACTIVE/next"}) {
		t.Errorf("batches: %v, %v, filters: %q", batches, err, served.filters)
	}
}

func TestAwaitBatchReturnsAnErrorForAFailedBatch(t *testing.T) {
	for state, code := range map[generationv1.Batch_State]codes.Code{
		generationv1.Batch_STATE_FAILED: codes.InvalidArgument, generationv1.Batch_STATE_CANCELLED: codes.Canceled,
	} {
		var failure *Error
		_, err := serve(t, &flaky{ends: state}).AwaitBatch(t.Context(), "tenants/default/batches/b", nil)
		if !errors.As(err, &failure) || failure.Code != code {
			t.Errorf("%v: %v", state, err)
		}
	}
}

func TestDrawJoinsChunksAndVerifiesTheirDigest(t *testing.T) {
	served := &flaky{}
	client := serve(t, served)
	pictures, err := client.Draw(t.Context(), "a", DrawOptions{Count: 2})
	if err != nil {
		t.Fatal(err)
	}
	if len(pictures) != 2 || !bytes.Equal(pictures[1].Data, []byte{1, 1, 2}) {
		t.Errorf("pictures: %v", pictures)
	}
	for _, broken := range []*flaky{{omitDone: true}, {wrongByte: true}, {shift: 1}, {shift: -1}} {
		var failure *Error
		_, err := serve(t, broken).Draw(t.Context(), "a", DrawOptions{Count: 1})
		if !errors.As(err, &failure) || failure.Reason != "ANSWER_DAMAGED" {
			t.Errorf("a damaged response: %v", err)
		}
	}
}

func TestNoProxyLeadsToALocalAddress(t *testing.T) {
	for _, address := range []string{
		"127.0.0.1:7361", "[::1]:7361", "localhost:7361", "unix:/run/registry", "registry:7361", "dns:///registry:7361",
		"registry.words.svc:7361", "registry.words.svc.cluster.local:7361", "Registry.words.SVC.:7361",
	} {
		if !isLocal(address) {
			t.Errorf("%s is local", address)
		}
	}
	for _, address := range []string{
		"registry.example.com:7361", "dns:///registry.example.com:443", "10.0.0.7:7361", "[2001:db8::1]:443",
	} {
		if isLocal(address) {
			t.Errorf("%s is not local", address)
		}
	}
}
