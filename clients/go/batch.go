package pseudoword

import (
	"context"
	"crypto/rand"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	generationv1 "github.com/pseudoword/pseudoword/clients/go/gen/pseudoword/generation/v1"
)

// CreateBatch begins a batch: many pictures, drawn behind everybody else into the server's object store. Its words mean to
// the end what they mean now.
func (c *Client) CreateBatch(ctx context.Context, batch *generationv1.Batch) (*generationv1.Batch, error) {
	created, err := c.Generation.CreateBatch(ctx, &generationv1.CreateBatchRequest{
		Parent: c.tenant, Batch: batch, RequestId: rand.Text(),
	})
	return created, FromCall(err)
}

// AwaitBatch returns a batch once it has succeeded, also when the server was away for a while; one that failed or was
// cancelled is an *Error. Where onChange is set, it is told the batch as it is and then every change. Cancelling the context
// ends the waiting and not the batch.
func (c *Client) AwaitBatch(
	ctx context.Context, name string, onChange func(*generationv1.Batch),
) (*generationv1.Batch, error) {
	var batch *generationv1.Batch
	err := follow(
		ctx,
		func(ctx context.Context) (grpc.ServerStreamingClient[generationv1.WatchBatchResponse], error) {
			return c.Generation.WatchBatch(ctx, &generationv1.WatchBatchRequest{Name: name})
		},
		func(message *generationv1.WatchBatchResponse) bool {
			batch = message.GetBatch()
			if onChange != nil {
				onChange(batch)
			}
			return batch.GetState() != generationv1.Batch_STATE_ACTIVE
		},
	)
	if err != nil {
		return nil, err
	}
	switch batch.GetState() {
	case generationv1.Batch_STATE_SUCCEEDED:
		return batch, nil
	case generationv1.Batch_STATE_FAILED:
		return nil, FromStatus(batch.GetError())
	default:
		cancelled := fromStatus(status.New(codes.Canceled, fmt.Sprintf("%s was cancelled", name)))
		cancelled.Reason = "BATCH_CANCELLED"
		return nil, cancelled
	}
}

// Batches returns the tenant's batches, newest first, without their prompts. The filter is one of AIP-160, such as
// "state = ACTIVE"; empty: all.
func (c *Client) Batches(ctx context.Context, filter string) ([]*generationv1.Batch, error) {
	var batches []*generationv1.Batch
	request := &generationv1.ListBatchesRequest{Parent: c.tenant, Filter: filter}
	for {
		page, err := c.Generation.ListBatches(ctx, request)
		if err != nil {
			return nil, FromCall(err)
		}
		batches = append(batches, page.GetBatches()...)
		if page.GetNextPageToken() == "" {
			return batches, nil
		}
		request.PageToken = page.GetNextPageToken()
	}
}

// CancelBatch ends a batch; what was drawn stays.
func (c *Client) CancelBatch(ctx context.Context, name string) (*generationv1.Batch, error) {
	over, err := c.Generation.CancelBatch(ctx, &generationv1.CancelBatchRequest{Name: name, RequestId: rand.Text()})
	return over, FromCall(err)
}
